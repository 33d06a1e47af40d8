// The float functions of csrc/cpu/simd_math.h against libm in double.
#ifndef FASTMETA_ISA
#define FASTMETA_ISA portable_math
#define FASTMETA_VECTOR_BYTES 16
#define CPU_RUNS_THIS true
#endif

// Multiplies and adds are fused from -O2 on; the sanitizers' build has -O1.
#pragma GCC optimize("O2")

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <vector>

#include "cpu/simd_math.h"

namespace {

namespace simd = fastmeta::FASTMETA_ISA;
using V = simd::Vec<float>;

int failures = 0;

std::vector<float> every_magnitude() {
  std::vector<float> x;
  for (std::uint64_t bits = 0; bits < (std::uint64_t(1) << 32); bits += 10007) {
    const auto word = std::uint32_t(bits);
    float value;
    std::memcpy(&value, &word, sizeof value);
    x.push_back(value);
  }
  for (float value : {0.0f, -0.0f, 1.0f, -1.0f, INFINITY, -INFINITY, NAN, FLT_MIN, -FLT_MIN,
                      FLT_TRUE_MIN, -FLT_TRUE_MIN, FLT_MAX, -FLT_MAX})
    x.push_back(value);
  return x;
}

std::vector<float> dense(double low, double high) {
  constexpr int n = 300000;
  std::vector<float> x;
  for (int i = 0; i <= n; ++i) x.push_back(float(low + (high - low) * i / n));
  return x;
}

std::vector<float> without(std::vector<float> x, float value) {
  x.erase(std::remove(x.begin(), x.end(), value), x.end());
  return x;
}

std::vector<float> up_to_zero(std::vector<float> x) {
  x.erase(std::remove_if(x.begin(), x.end(), [](float value) { return value > 0; }), x.end());
  return x;
}

// The distance in units of the last place of a float next to y; 0 for the same special value.
double ulps(float got, double y, double floor) {
  if (std::isnan(got) || std::isnan(y)) return std::isnan(got) && std::isnan(y) ? 0 : INFINITY;
  if (got == float(y)) return 0;
  if (std::isinf(got) || std::isinf(float(y))) return INFINITY;
  const double magnitude = std::fmax(std::fmax(std::fabs(y), floor), double(FLT_MIN));
  return std::fabs(got - y) / std::ldexp(1.0, std::ilogb(magnitude) - 23);
}

// `floor`: below it an error counts in the last place of the floor.
void check(const char* name, const std::vector<float>& x, V (*ours)(V), double (*libm)(double),
           double most, double floor = 0) {
  constexpr size_t W = simd::lanes<float>;
  double worst = 0;
  float where = 0, there = 0;
  for (size_t i = 0; i < x.size(); i += W) {
    V in{};
    for (size_t l = 0; l < W && i + l < x.size(); ++l) in[l] = x[i + l];
    const V out = ours(in);
    for (size_t l = 0; l < W; ++l) {
      const double error = ulps(out[l], libm(double(in[l])), floor);
      if (error > worst) worst = error, where = in[l], there = out[l];
    }
  }
  std::printf("  %-22s %8.2f ulp at %.9g (%.9g)\n", name, worst, double(where), double(there));
  if (worst <= most) return;
  std::printf("FAILED: %s: more than %.1f ulp\n", name, most);
  ++failures;
}

V exp(V x) { return simd::exp(x); }
V exp_below_zero(V x) { return simd::exp_below_zero(x); }
V log(V x) { return simd::log(x); }
V log1p(V x) { return simd::log1p(x); }
V tanh(V x) { return simd::tanh(x); }
V erf(V x) { return simd::erf(x); }
V sigmoid(V x) { return simd::sigmoid(x); }
V sine(V x) {
  V s, c;
  simd::sincos(x, s, c);
  return s;
}
V cosine(V x) {
  V s, c;
  simd::sincos(x, s, c);
  return c;
}

double logistic(double x) { return 1 / (1 + std::exp(-x)); }

}  // namespace

int main() {
  if (!(CPU_RUNS_THIS)) return 0;
  std::printf("vectors of %d bytes\n", FASTMETA_VECTOR_BYTES);
  const auto all = every_magnitude();

  check("exp", all, exp, std::exp, 2);
  check("exp, dense", dense(-105, 90), exp, std::exp, 2);
  // It is 0 where the true value is subnormal.
  check("exp below zero", up_to_zero(all), exp_below_zero, std::exp, 2, 1e-31);
  check("exp below zero, dense", dense(-87, 0), exp_below_zero, std::exp, 2);
  check("log", all, log, std::log, 2);
  check("log, dense", dense(0, 4), log, std::log, 2);
  // Callers stay in [0, 1]; at -1 itself there is NaN for -inf.
  check("log1p", without(all, -1), log1p, std::log1p, 2);
  check("log1p, dense", without(dense(-1, 4), -1), log1p, std::log1p, 2);
  check("tanh", all, tanh, std::tanh, 2);
  check("tanh, dense", dense(-10, 10), tanh, std::tanh, 2);
  check("erf", all, erf, std::erf, 2);
  check("erf, dense", dense(-5, 5), erf, std::erf, 2);
  // 1 / (1 + exp(-x)) is 0 where the true value is subnormal.
  check("sigmoid", all, sigmoid, logistic, 3, 1e-31);
  check("sigmoid, dense", dense(-87, 20), sigmoid, logistic, 3);
  // The reduction by pi/2 has an absolute error, which shows near the zeros far from 0.
  constexpr double near_zero = 1.0 / 1024;
  check("sin", all, sine, std::sin, 2, near_zero);
  check("sin, dense", dense(-10, 10), sine, std::sin, 2);
  check("sin, wide", dense(-8192, 8192), sine, std::sin, 2, near_zero);
  check("cos", all, cosine, std::cos, 2, near_zero);
  check("cos, dense", dense(-10, 10), cosine, std::cos, 2);
  check("cos, wide", dense(-8192, 8192), cosine, std::cos, 2, near_zero);
  return failures != 0;
}
