// Norms with activation and pool, and pools by themselves, through their tables, in memory of exactly
// the size asked for:
//   no access outside it (AddressSanitizer) and no race (ThreadSanitizer), in either layout;
//   every output is written; the same bits for any number of threads;
//   the result is that of plain loops, and each backward is the derivative of what it is the
//   backward of, by finite differences.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/runtime.h"
#include "expect.h"
#include "gomp_threads.h"

namespace {

using namespace fastmeta;
using test::expect, test::failures;

std::uint64_t state = 1;
double uniform() {
  state = state * 6364136223846793005ull + 1442695040888963407ull;
  return double(state >> 11) / double(1ull << 53);
}
i64 whole(i64 least, i64 most) { return least + i64(uniform() * double(most - least + 1)); }
template <class R>
std::vector<R> draw(i64 n) {
  std::vector<R> v(static_cast<size_t>(n));
  for (R& x : v) x = R(2 * uniform() - 1);
  return v;
}
template <class R>
std::vector<R> poisoned(i64 n) {
  return std::vector<R>(size_t(n), R(NAN));
}
template <class R>
bool same(const std::vector<R>& a, const std::vector<R>& b) {
  return std::memcmp(a.data(), b.data(), a.size() * sizeof(R)) == 0;
}
template <class R>
double dot(const std::vector<R>& a, const std::vector<R>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += double(a[i]) * double(b[i]);
  return sum;
}
template <class R>
std::vector<R> moved(std::vector<R> a, const std::vector<R>& b, double step) {
  for (size_t i = 0; i < a.size(); ++i) a[i] += R(step * b[i]);
  return a;
}

template <class R>
struct Point {  // what a norm is taken of
  std::vector<R> x, weight, bias, g;
  Point at(const Point& d, double step) const {
    return {moved(x, d.x, step), moved(weight, d.weight, step), moved(bias, d.bias, step),
            moved(g, d.g, step)};
  }
};
template <class R>
struct Result {
  std::vector<R> y, mean, rstd, for_x, for_weight, for_bias;          // of forward and backward
  std::vector<R> second_for_x, second_for_y, second_for_weight;
};

template <class R>
struct Case {
  const Kernels<R>& kernels;
  i64 T, S, C, H, W, pool;
  double slope;
  bool along_pixels;

  i64 pixels() const { return T * S * C * H * W; }
  i64 windows() const { return T * S * C * (H / pool) * (W / pool); }
  Batch<R> batch(const std::vector<R>& v, i64 h, i64 w) const {
    R* data = const_cast<R*>(v.data());
    if (along_pixels) return {data, C * h * w, T * C * h * w, h * w, w, 1};  // samples first
    return {data, S * h * w * C, h * w * C, 1, w * C, C};
  }
  Batch<R> image(const std::vector<R>& v) const { return batch(v, H, W); }
  Batch<R> pooled(const std::vector<R>& v) const { return batch(v, H / pool, W / pool); }
  PerChannel<R> channels(const std::vector<R>& v) const { return {const_cast<R*>(v.data()), C}; }

  Point<R> point() const {
    return {draw<R>(pixels()), draw<R>(T * C), draw<R>(T * C), draw<R>(windows())};
  }

  // along: gradients for what the backward returns.
  Result<R> run(const Point<R>& p, const Point<R>& along, int threads) const {
    Result<R> r;
    for (auto* v : {&r.mean, &r.rstd, &r.for_weight, &r.for_bias, &r.second_for_weight})
      *v = poisoned<R>(T * C);
    for (auto* v : {&r.for_x, &r.second_for_x}) *v = poisoned<R>(pixels());
    for (auto* v : {&r.y, &r.second_for_y}) *v = poisoned<R>(windows());
    Norm<R> n{};
    n.tasks = T, n.samples = S, n.channels = C, n.height = H, n.width = W, n.pool = pool;
    n.eps = 0.01, n.slope = slope, n.threads = threads, n.along_pixels = along_pixels;
    n.x = image(p.x), n.weight = channels(p.weight), n.bias = channels(p.bias);
    n.mean = channels(r.mean), n.rstd = channels(r.rstd);
    n.form = NormForm::Forward, n.y = pooled(r.y);
    kernels.norm(n);
    n.form = NormForm::Backward, n.y = pooled(p.g), n.for_x = image(r.for_x);
    n.for_weight = channels(r.for_weight), n.for_bias = channels(r.for_bias);
    kernels.norm(n);
    n.form = NormForm::SecondBackward, n.a = image(along.x), n.u = channels(along.weight);
    n.v = channels(along.bias), n.for_x = image(r.second_for_x);
    n.for_y = pooled(r.second_for_y), n.for_weight = channels(r.second_for_weight);
    kernels.norm(n);
    return r;
  }

  // Mean and variance of a channel, by plain loops.
  std::pair<double, double> moments(const Point<R>& p, i64 t, i64 c) const {
    const Batch<R> x = image(p.x);
    const double n = double(S * H * W);
    double mean = 0, variance = 0;
    const auto over = [&](auto f) {
      for (i64 s = 0; s < S; ++s)
        for (i64 h = 0; h < H; ++h)
          for (i64 w = 0; w < W; ++w) f(pixel(x, t, s, c, h, w));
    };
    over([&](double v) { mean += v / n; });
    over([&](double v) { variance += (v - mean) * (v - mean) / n; });
    return {mean, variance};
  }
  static double pixel(const Batch<R>& x, i64 t, i64 s, i64 c, i64 h, i64 w) {
    return double(x.data[t * x.task + s * x.sample + c * x.channel + h * x.row + w * x.pixel]);
  }

  // The result at one place.
  double plain(const Point<R>& p, std::pair<double, double> of, i64 t, i64 s, i64 c, i64 i, i64 j) const {
    const Batch<R> x = image(p.x);
    double best = -INFINITY;
    for (i64 h = i * pool; h < (i + 1) * pool; ++h)
      for (i64 w = j * pool; w < (j + 1) * pool; ++w) {
        const double z = (pixel(x, t, s, c, h, w) - of.first) / std::sqrt(of.second + 0.01) *
                             double(p.weight[size_t(t * C + c)]) +
                         double(p.bias[size_t(t * C + c)]);
        best = std::fmax(best, z > 0 ? z : z * slope);
      }
    return best;
  }
};

template <class R>
void check(const Case<R>& c, const std::string& where) {
  const Point<R> p = c.point(), along = c.point(), d = c.point();
  const Result<R> r = c.run(p, along, 1), r3 = c.run(p, along, 3);
  const std::vector<R> Result<R>::*all[] = {
      &Result<R>::y, &Result<R>::mean, &Result<R>::rstd, &Result<R>::for_x, &Result<R>::for_weight,
      &Result<R>::for_bias, &Result<R>::second_for_x, &Result<R>::second_for_y,
      &Result<R>::second_for_weight};
  for (const auto member : all) {
    expect(same(r.*member, r3.*member), where, "threads change the bits");
    for (const R v : r.*member) expect(std::isfinite(v), where, "an output is not finite");
  }
  const Batch<R> y = c.pooled(r.y);
  double worst = 0;
  for (i64 t = 0; t < c.T; ++t)
    for (i64 k = 0; k < c.C; ++k) {
      const auto moments = c.moments(p, t, k);
      for (i64 s = 0; s < c.S; ++s)
        for (i64 i = 0; i < c.H / c.pool; ++i)
          for (i64 j = 0; j < c.W / c.pool; ++j) {
            const R found = y.data[t * y.task + s * y.sample + k * y.channel + i * y.row + j * y.pixel];
            worst = std::fmax(worst, std::fabs(double(found) - c.plain(p, moments, t, s, k, i, j)));
          }
    }
  expect(worst < (sizeof(R) == 4 ? 1e-5 : 1e-12), where, "the result is not that of plain loops");
  if (sizeof(R) == 4) return;

  // Small enough that hardly a window takes another pixel on the way.
  const double step = 1e-7;
  const auto slope_of = [&](auto f) {
    const Point<R> ahead = p.at(d, step), behind = p.at(d, -step);
    return (f(ahead, c.run(ahead, along, 1)) - f(behind, c.run(behind, along, 1))) / (2 * step);
  };
  const auto close = [&](double a, double b, const char* what) {
    expect(std::fabs(a - b) <= 1e-6 * (1 + std::fabs(b)), where, what);
  };
  close(dot(r.for_x, d.x) + dot(r.for_weight, d.weight) + dot(r.for_bias, d.bias),
        slope_of([&](const Point<R>&, const Result<R>& q) { return dot(q.y, p.g); }),
        "the backward is not the derivative");
  close(dot(r.second_for_x, d.x) + dot(r.second_for_weight, d.weight) + dot(r.second_for_y, d.g),
        slope_of([&](const Point<R>&, const Result<R>& q) {
          return dot(q.for_x, along.x) + dot(q.for_weight, along.weight) +
                 dot(q.for_bias, along.bias);
        }),
        "the second backward is not the derivative of the first");
}

// What is taken from an image and put back is there, and the rest is 0.
template <class R>
void check_pool(const Case<R>& c, const std::string& where) {
  const std::vector<R> x = draw<R>(c.pixels());
  std::vector<R> y = poisoned<R>(c.windows()), at = y, again = y, back = poisoned<R>(c.pixels());
  const auto run = [&](PoolForm form, const std::vector<R>& pixels, const std::vector<R>& windows) {
    c.kernels.max_pool({form, c.T, c.S, c.C, c.H, c.W, 3, c.along_pixels, c.image(pixels),
                        c.pooled(windows), c.pooled(at)});
  };
  run(PoolForm::Largest, x, y);
  run(PoolForm::Gather, x, again);
  run(PoolForm::Scatter, back, y);
  expect(same(y, again), where, "the largest are not at their places");
  double total = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    expect(back[i] == 0 || back[i] == x[i], where, "a pixel is put where it was not taken");
    total += double(back[i]);
  }
  expect(std::fabs(total - dot(y, std::vector<R>(y.size(), R(1)))) < 1e-3, where,
         "a pixel is not put back");
}

template <class R>
void check_variant(const char* name, const Kernels<R>& kernels) {
  for (int i = 0; i < 60; ++i) {
    const i64 pool = whole(1, 2);
    const Case<R> c{kernels,
                    whole(1, 3),
                    whole(1, 4),
                    whole(1, 20),
                    whole(pool, 1) + whole(pool - 1, i % 3 ? 8 : 40),
                    whole(1, 2) + whole(pool - 1, i % 3 ? 8 : 40),
                    pool,
                    0.5 * double(whole(0, 2)),
                    whole(0, 1) == 1};
    const std::string where =
        std::string(name) + (sizeof(R) == 4 ? " float " : " double ") + std::to_string(i);
    check(c, where);
    if (c.pool == 2) check_pool(c, where);
  }
}

}  // namespace

int main() {
  for (const Variant* v = variants(); v->name; ++v) {
    if (!v->runs_here()) continue;
    check_variant(v->name, *v->f32);
    check_variant(v->name, *v->f64);
  }
  std::printf("%d failures\n", failures);
  return failures != 0;
}
