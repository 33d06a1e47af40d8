// Elementary functions on vectors. float: polynomials within 2 ulp, sigmoid within 3, sine and cosine
// within a few ulp of 1 (tests/csrc/test_math.cpp measures it); double: libm lane by lane,
// since float64 exists for checking.
#pragma once

#include "simd.h"

namespace fastmeta::FASTMETA_ISA {

template <class F>
FASTMETA_INLINE Vec<double> lane_by_lane(Vec<double> x, F f) {
  for (int l = 0; l < lanes<double>; ++l) x[l] = f(x[l]);
  return x;
}

inline Vec<double> exp(Vec<double> x) {
  return lane_by_lane(x, [](double v) { return std::exp(v); });
}
inline Vec<double> exp_below_zero(Vec<double> x) { return exp(x); }
inline Vec<double> log(Vec<double> x) {
  return lane_by_lane(x, [](double v) { return std::log(v); });
}
inline Vec<double> log1p(Vec<double> x) {
  return lane_by_lane(x, [](double v) { return std::log1p(v); });
}
inline Vec<double> tanh(Vec<double> x) {
  return lane_by_lane(x, [](double v) { return std::tanh(v); });
}
inline Vec<double> erf(Vec<double> x) {
  return lane_by_lane(x, [](double v) { return std::erf(v); });
}
inline void sincos(Vec<double> x, Vec<double>& s, Vec<double>& c) {
  s = lane_by_lane(x, [](double v) { return std::sin(v); });
  c = lane_by_lane(x, [](double v) { return std::cos(v); });
}

// 1.5 * 2^23: adding and taking it away rounds to the nearest integer.
constexpr float rounder = 12582912.0f;

// exp(x - n ln(2)) where that is within ln(2)/2 of 0; the polynomial is Cephes' expf.
FASTMETA_INLINE Vec<float> exp_of_rest(Vec<float> x, Vec<float> n) {
  using V = Vec<float>;
  V r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  V p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  return p * (r * r) + r + 1.0f;
}

// exp(x) = 2^n exp(r)
FASTMETA_INLINE Vec<float> exp(Vec<float> x) {
  using V = Vec<float>;
  using I = Mask<float>;
  const V clamped = vmin(vmax(x, splat(-104.0f)), splat(89.0f));
  const V n = (clamped * 1.44269504088896341f + rounder) - rounder;
  const V p = exp_of_rest(clamped, n);
  // Two factors, since 2^n itself leaves the range of normal numbers at both ends.
  const I whole = __builtin_convertvector(n, I);
  const I half = whole >> 1;
  const V scale_a = (V)((half + 127) << 23);
  const V scale_b = (V)((whole - half + 127) << 23);
  const V y = p * scale_a * scale_b;
  return select(x == x, y, x);
}

// exp(x) of x <= 0 in two thirds of the operations; 0 where that is no normal number.
FASTMETA_INLINE Vec<float> exp_below_zero(Vec<float> x) {
  using V = Vec<float>;
  using I = Mask<float>;
  const V clamped = vmax(x, splat(-88.0f));  // n = -127, whose power of two is 0 here
  const V shifted = clamped * 1.44269504088896341f + rounder;
  const V p = exp_of_rest(clamped, shifted - rounder);
  return select(x == x, p * (V)(((I)shifted << 23) + (127 << 23)), x);
}

// Cephes' logf for x > 0; log(0) = -inf, negative: NaN.
FASTMETA_INLINE Vec<float> log(Vec<float> x) {
  using V = Vec<float>;
  using I = Mask<float>;
  const I subnormal = x < 1.17549435e-38f;
  const V scaled = select(subnormal, x * 8388608.0f, x);
  I bits = (I)scaled;
  V e = __builtin_convertvector((bits >> 23) - 126, V) - select(subnormal, splat(23.0f), V{});
  V m = (V)((bits & 0x007fffff) | 0x3f000000);
  const I small = m < 0.707106781186547524f;
  e = e - select(small, splat(1.0f), V{});
  m = select(small, m + m, m) - 1.0f;
  const V z = m * m;
  V p = splat(7.0376836292e-2f);
  p = p * m - 1.1514610310e-1f;
  p = p * m + 1.1676998740e-1f;
  p = p * m - 1.2420140846e-1f;
  p = p * m + 1.4249322787e-1f;
  p = p * m - 1.6668057665e-1f;
  p = p * m + 2.0000714765e-1f;
  p = p * m - 2.4999993993e-1f;
  p = p * m + 3.3333331174e-1f;
  V y = p * m * z;
  y = y - e * 2.12194440e-4f;
  y = y - 0.5f * z;
  y = (m + y) + e * 0.693359375f;
  y = select(x > 3.4028235e38f, x, y);
  y = select(x == 0.0f, splat(-INFINITY), y);
  return select(x >= 0.0f, y, splat(float(NAN)));
}

// The rounding error of 1 + x is put back in first order.
FASTMETA_INLINE Vec<float> log1p(Vec<float> x) {
  const Vec<float> w = 1.0f + x;
  const Vec<float> lost = x - (w - 1.0f);
  const Vec<float> y = log(w) + select(w == 0.0f, Vec<float>{}, lost / w);
  return select(w > 3.4028235e38f, w, y);
}

// 1 - 2 / (exp(2|x|) + 1), and Cephes' polynomial near 0. The exponential is written out: 2|x| is in
// [1.25, 18.4] where it counts, so that one factor 2^n will do and n is never negative.
FASTMETA_INLINE Vec<float> tanh(Vec<float> x) {
  using V = Vec<float>;
  using I = Mask<float>;
  const V a = absolute<float>(x);
  const V most = vmin(a, splat(9.2f));  // 1 in float from 9.02 on
  const V shifted = most * 2.88539008178f + rounder;
  const V n = shifted - rounder;
  V r = (most + most) - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  // Pairwise: the chain of a vector is what takes the time, not the number of its instructions.
  const V r2 = r * r;
  const V low = r * 1.00000003634f + 1.0f;
  const V middle = r * 1.66664200724e-1f + 4.99999920751e-1f;
  const V high = r2 * 1.38368357448e-3f + (r * 8.37482403066e-3f + 4.16682261885e-2f);
  const V p = (high * r2 + middle) * r2 + low;
  const V e = (V)((I)p + ((I)shifted << 23));  // the low bits of `shifted` are n
  const V far = copysign<float>(1.0f - 2.0f / (e + 1.0f), x);
  const V z = x * x;
  V q = splat(-5.70498872745e-3f);
  q = q * z + 2.06390887954e-2f;
  q = q * z - 5.37397155531e-2f;
  q = q * z + 1.33314422036e-1f;
  q = q * z - 3.33332819422e-1f;
  const V near = q * z * x + x;
  return select(a > 0.625f, far, near);  // NaN goes through `near`
}

// Two branches, the outer one through exp: N. Juffa's erff, about 1 ulp.
FASTMETA_INLINE Vec<float> erf(Vec<float> x) {
  using V = Vec<float>;
  const V t = absolute<float>(x);
  const V s = x * x;
  V u = splat(-1.72853470e-5f) * t + 3.83197126e-4f;
  const V w = splat(-3.88396438e-3f) * t + 2.42546219e-2f;
  u = u * s + w;
  u = u * t - 1.06777877e-1f;
  u = u * t - 6.34846687e-1f;
  u = u * t - 1.28717512e-1f;
  u = u * t - t;
  const V far = copysign<float>(1.0f - exp(u), x);
  V p = splat(-5.96761703e-4f);
  p = p * s + 4.99119423e-3f;
  p = p * s - 2.67681349e-2f;
  p = p * s + 1.12819925e-1f;
  p = p * s - 3.76125336e-1f;
  p = p * s + 1.28379166e-1f;
  const V near = p * x + x;
  // Past 4 the result is 1 and the polynomial in t is out of its range.
  const V one = copysign<float>(splat(1.0f), x);
  return select(t > 0.927734375f, select(t > 4.0f, one, far), select(x == x, near, x));
}

// Cody and Waite's reduction by pi/2 in three parts holds to |x| = 8192; past it libm takes over.
FASTMETA_INLINE void sincos(Vec<float> x, Vec<float>& sine, Vec<float>& cosine) {
  using V = Vec<float>;
  using I = Mask<float>;
  const V a = absolute<float>(x);
  bool far = false;
  for (int l = 0; l < lanes<float>; ++l) far |= !(a[l] <= 8192.0f);
  if (__builtin_expect(far, 0)) {
    for (int l = 0; l < lanes<float>; ++l) {
      sine[l] = std::sin(x[l]);
      cosine[l] = std::cos(x[l]);
    }
    return;
  }
  const V n = (x * 0.636619772367581343f + rounder) - rounder;
  const I q = __builtin_convertvector(n, I);
  V r = x - n * 1.5703125f;
  r = r - n * 4.837512969970703125e-4f;
  r = r - n * 7.54978995489188216e-8f;
  const V z = r * r;
  V s = splat(-1.9515295891e-4f);
  s = s * z + 8.3321608736e-3f;
  s = s * z - 1.6666654611e-1f;
  s = s * z * r + r;
  V c = splat(2.443315711809948e-5f);
  c = c * z - 1.388731625493765e-3f;
  c = c * z + 4.166664568298827e-2f;
  c = c * z * z - 0.5f * z + 1.0f;
  const I odd = (q & 1) != 0;
  const V sv = select(odd, c, s);
  const V cv = select(odd, s, c);
  sine = select((q & 2) != 0, -sv, sv);
  cosine = select(((q + 1) & 2) != 0, -cv, cv);
}

template <class R>
FASTMETA_INLINE Vec<R> square_roots(Vec<R> x) {
  for (int l = 0; l < lanes<R>; ++l) x[l] = std::sqrt(x[l]);
  return x;
}
template <class V>
FASTMETA_INLINE V sigmoid(V x) {
  return 1 / (1 + exp(-x));
}

}  // namespace fastmeta::FASTMETA_ISA
