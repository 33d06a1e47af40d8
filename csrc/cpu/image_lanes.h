// How the vectors of norms and pools lie in an image: along the pixels of a channel, or along the channels of a
// pixel. A window is P x P pixels; what is over at an image's edge belongs to none.
#pragma once

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "runtime.h"
#include "simd.h"

namespace fastmeta::FASTMETA_ISA {

// The first n of a vector, n < W; the others are 0 and not touched. One by one they made a max-pool of
// 10 x 10 pixels, whose rows fill no vector, take twice as long.
template <class R>
FASTMETA_INLINE Vec<R> load_first(const R* p, i64 n) {
#if defined(__AVX512F__)
  const auto there = (1u << n) - 1;
  if constexpr (sizeof(R) == 4) return (Vec<R>)_mm512_maskz_loadu_ps(__mmask16(there), p);
  else return (Vec<R>)_mm512_maskz_loadu_pd(__mmask8(there), p);
#elif defined(__AVX2__)
  const Mask<R> there = iota<R>() < R(n);
  if constexpr (sizeof(R) == 4) return (Vec<R>)_mm256_maskload_ps(p, (__m256i)there);
  else return (Vec<R>)_mm256_maskload_pd(p, (__m256i)there);
#else
  alignas(sizeof(Vec<R>)) R some[lanes<R>] = {};
  for (i64 l = 0; l < n; ++l) some[l] = p[l];
  return load(some);
#endif
}
template <class R>
FASTMETA_INLINE void store_first(R* p, i64 n, Vec<R> v) {
#if defined(__AVX512F__)
  const auto there = (1u << n) - 1;
  if constexpr (sizeof(R) == 4) _mm512_mask_storeu_ps(p, __mmask16(there), (__m512)v);
  else _mm512_mask_storeu_pd(p, __mmask8(there), (__m512d)v);
#elif defined(__AVX2__)
  const Mask<R> there = iota<R>() < R(n);
  if constexpr (sizeof(R) == 4) _mm256_maskstore_ps(p, (__m256i)there, (__m256)v);
  else _mm256_maskstore_pd(p, (__m256i)there, (__m256d)v);
#else
  for (i64 l = 0; l < n; ++l) p[l] = v[l];
#endif
}

// Which lanes hold something: all; all, but only the last n are new; or the first n, the others 0.
enum class Fill { All, Again, First };

template <class R, Fill fill>
struct Lanes {
  using V = Vec<R>;
  static constexpr int W = lanes<R>;
  i64 n;

  FASTMETA_INLINE V load(const R* p) const {
    if constexpr (fill == Fill::First) return load_first(p, n);
    else return load_anywhere(p);
  }
  FASTMETA_INLINE void store(R* p, V v) const {
    if constexpr (fill == Fill::First) store_first(p, n, v);
    else store_anywhere(p, v);
  }
  // Two neighbours a lane.
  FASTMETA_INLINE void load_pairs(const R* p, V& left, V& right) const {
    V a, b{};
    if constexpr (fill == Fill::First) {
      a = 2 * n < W ? load_first(p, 2 * n) : load_anywhere(p);
      if (2 * n > W) b = load_first(p + W, 2 * n - W);
    } else {
      a = load_anywhere(p), b = load_anywhere(p + W);
    }
    Mask<R> from{};
    for (int l = 0; l < W; ++l) from[l] = 2 * l;
    left = shuffle<R>(a, b, from);
    right = shuffle<R>(a, b, from + 1);
  }
  FASTMETA_INLINE void store_pairs(R* p, V left, V right) const {
    Mask<R> from{};
    for (int l = 0; l < W; ++l) from[l] = l / 2 + (l % 2) * W;
    const V a = shuffle<R>(left, right, from), b = shuffle<R>(left, right, from + W / 2);
    if constexpr (fill == Fill::First) {
      if (2 * n < W) return store_first(p, 2 * n, a);
      store_anywhere(p, a);
      if (2 * n > W) store_first(p + W, 2 * n - W, b);
    } else {
      store_anywhere(p, a);
      store_anywhere(p + W, b);
    }
  }
  // For sums: 0 in the lanes that are not new or not there.
  FASTMETA_INLINE V counted(V v) const {
    if constexpr (fill == Fill::Again) return select(iota<R>() >= R(W - n), v, V{});
    if constexpr (fill == Fill::First) return select(iota<R>() < R(n), v, V{});
    return v;
  }
};

// f(lanes, i) for n neighbours; the last vector goes back over some that have been.
template <class R, class F>
FASTMETA_INLINE void each_vector(i64 n, F f) {
  constexpr i64 W = lanes<R>;
  if (n < W) return n > 0 ? f(Lanes<R, Fill::First>{n}, i64(0)) : void();
  i64 i = 0;
  for (; i + W <= n; i += W) f(Lanes<R, Fill::All>{W}, i);
  if (i < n) f(Lanes<R, Fill::Again>{n - i}, n - W);
}

// The images of one sample that a unit of work is about.
template <class R>
struct Image {
  R* data;
  i64 row, pixel;
  FASTMETA_INLINE R* at(i64 y, i64 x) const { return data + y * row + x * pixel; }
};

template <class R>
Image<R> image_of(const Batch<R>& b, i64 task, i64 sample, i64 channel) {
  return {b.data + task * b.task + sample * b.sample + channel * b.channel, b.row, b.pixel};
}

template <class R, int P>
struct AlongPixels {
  using V = Vec<R>;
  using WithoutWindows = AlongPixels<R, 1>;
  static constexpr i64 W = lanes<R>, window = P, most_channels = 1;
  i64 h, w;

  AlongPixels(i64 height, i64 width, i64) : h(P > 1 ? height : 1), w(P > 1 ? width : height * width) {}
  i64 vectors() const { return ceil_div(h * w, W); }

  // f(lanes, line, column) of the first pixel of each window.
  template <class F>
  FASTMETA_INLINE void each_window(F f) const {
    for (i64 y = 0; y + P <= h; y += P)
      each_vector<R>(w / P, [&](auto lanes, i64 i) { f(lanes, y, i * P); });
  }
  // The same, pixel by pixel, for those of no window.
  template <class F>
  FASTMETA_INLINE void each_other(F f) const {
    const i64 lines = h / P * P, columns = w / P * P;
    for (i64 y = 0; y < lines && columns < w; ++y) f(Lanes<R, Fill::First>{1}, y, columns);
    for (i64 y = lines; y < h; ++y)
      each_vector<R>(w, [&](auto lanes, i64 x) { f(lanes, y, x); });
  }
  template <class L>
  static FASTMETA_INLINE void load(const Image<R>& from, L lanes, i64 y, i64 x, V* v) {
    if constexpr (P == 1) v[0] = lanes.load(from.at(y, x));
    else
      for (int k = 0; k < P; ++k) lanes.load_pairs(from.at(y + k, x), v[P * k], v[P * k + 1]);
  }
  template <class L>
  static FASTMETA_INLINE void store(const Image<R>& to, L lanes, i64 y, i64 x, const V* v) {
    if constexpr (P == 1) lanes.store(to.at(y, x), v[0]);
    else
      for (int k = 0; k < P; ++k) lanes.store_pairs(to.at(y + k, x), v[P * k], v[P * k + 1]);
  }
  // add(f(pixels)) for all pixels of an image, four vectors' at once: an addition waits for the last.
  template <class F, class Add>
  FASTMETA_INLINE void sum(const Image<R>& from, F f, Add add) const {
    for (i64 y = 0; y < h; ++y) {
      const R* row = from.at(y, 0);
      i64 i = 0;
      for (; i + 4 * W <= w; i += 4 * W) {
        const auto a = f(load_anywhere(row + i)) + f(load_anywhere(row + i + W));
        const auto b = f(load_anywhere(row + i + 2 * W)) + f(load_anywhere(row + i + 3 * W));
        add(a + b);
      }
      each_vector<R>(w - i, [&](auto lanes, i64 j) {
        add(f(lanes.load(row + i + j)).counted(lanes));
      });
    }
  }
  FASTMETA_INLINE V constants(const R* p) const { return splat(*p); }
  // A number a channel, from and for every lane.
  static void put(R* p, const double* v) { *p = R(v[0]); }
  static void across(double* v) {
    for (i64 width = W / 2; width > 0; width /= 2)
      for (i64 l = 0; l < width; ++l) v[l] += v[l + width];
    for (i64 l = 1; l < W; ++l) v[l] = v[0];
  }
};

template <class R, int P>
struct AlongChannels {
  using V = Vec<R>;
  using WithoutWindows = AlongChannels<R, 1>;
  static constexpr i64 W = lanes<R>, window = P, most_channels = W;
  i64 h, w, n;  // channels from the unit's first on, up to W

  AlongChannels(i64 height, i64 width, i64 channels) : h(height), w(width), n(channels) {}
  i64 vectors() const { return h * w; }

  template <class F>
  FASTMETA_INLINE void with_lanes(F f) const {
    if (n == W) f(Lanes<R, Fill::All>{n});
    else f(Lanes<R, Fill::First>{n});
  }
  template <class F>
  FASTMETA_INLINE void each_window(F f) const {
    with_lanes([&](auto lanes) {
      for (i64 y = 0; y + P <= h; y += P)
        for (i64 x = 0; x + P <= w; x += P) f(lanes, y, x);
    });
  }
  template <class F>
  FASTMETA_INLINE void each_other(F f) const {
    const i64 lines = h / P * P, columns = w / P * P;
    with_lanes([&](auto lanes) {
      for (i64 y = 0; y < h; ++y)
        for (i64 x = y < lines ? columns : 0; x < w; ++x) f(lanes, y, x);
    });
  }
  template <class L>
  static FASTMETA_INLINE void load(const Image<R>& from, L lanes, i64 y, i64 x, V* v) {
    for (int k = 0; k < P * P; ++k) v[k] = lanes.load(from.at(y + k / P, x + k % P));
  }
  template <class L>
  static FASTMETA_INLINE void store(const Image<R>& to, L lanes, i64 y, i64 x, const V* v) {
    for (int k = 0; k < P * P; ++k) lanes.store(to.at(y + k / P, x + k % P), v[k]);
  }
  template <class F, class Add>
  FASTMETA_INLINE void sum(const Image<R>& from, F f, Add add) const {
    with_lanes([&](auto lanes) {
      for (i64 y = 0; y < h; ++y)
        for (i64 x = 0; x < w; ++x) add(f(lanes.load(from.at(y, x))));
    });
  }
  FASTMETA_INLINE V constants(const R* p) const {
    V v{};
    with_lanes([&](auto lanes) { v = lanes.load(p); });
    return v;
  }
  void put(R* p, const double* v) const {
    for (i64 l = 0; l < n; ++l) p[l] = R(v[l]);
  }
  static void across(double*) {}
};

// f(task, first channel) for all channels of all tasks, as many at once as lanes hold.
template <class Along, class Call, class F>
void each_unit(const Call& call, F f) {
  constexpr i64 least = 1 << 14;  // numbers that a thread is woken for
  const i64 units = ceil_div(call.channels, Along::most_channels), all = call.tasks * units;
  const i64 of_unit = call.samples * call.height * call.width * Along::most_channels;
  const i64 block = ceil_div(least, of_unit);
  parallel(ceil_div(all, block), call.threads, [&](i64, i64 b) {
    for (i64 i = b * block; i < smaller(all, (b + 1) * block); ++i)
      f(i / units, i % units * Along::most_channels);
  });
}

}  // namespace fastmeta::FASTMETA_ISA
