// One vector of FASTMETA_VECTOR_BYTES, by the compiler's vector extension: the same source serves
// every instruction set.
#pragma once

#include <cmath>
#include <cstring>

#if FASTMETA_VECTOR_BYTES > 16
#include <immintrin.h>
#endif

#include "../network/spec.h"

#define FASTMETA_INLINE inline __attribute__((always_inline))
// What a team runs, and what those who launch it run as well: CUDA has words for them.
#define FASTMETA_CODE
#define FASTMETA_APART
#define FASTMETA_ROLLED
#define FASTMETA_BOTH
#define FASTMETA_INLINE_BOTH FASTMETA_INLINE
#define FASTMETA_ANY_CALLER

namespace fastmeta::FASTMETA_ISA {

template <class R>
struct Simd;

template <>
struct Simd<float> {
  typedef float V __attribute__((vector_size(FASTMETA_VECTOR_BYTES), may_alias));
  typedef std::int32_t I __attribute__((vector_size(FASTMETA_VECTOR_BYTES)));
  using Int = std::int32_t;
};

template <>
struct Simd<double> {
  typedef double V __attribute__((vector_size(FASTMETA_VECTOR_BYTES), may_alias));
  typedef std::int64_t I __attribute__((vector_size(FASTMETA_VECTOR_BYTES)));
  using Int = std::int64_t;
};

template <class R>
using Vec = typename Simd<R>::V;
template <class R>
using Mask = typename Simd<R>::I;
template <class R>
constexpr int lanes = FASTMETA_VECTOR_BYTES / int(sizeof(R));

template <class R>
FASTMETA_INLINE Vec<R> load(const R* p) {
  return *reinterpret_cast<const Vec<R>*>(p);
}
template <class R>
FASTMETA_INLINE void store(R* p, Vec<R> v) {
  *reinterpret_cast<Vec<R>*>(p) = v;
}
// Without the alignment that the two above rely on.
template <class R>
FASTMETA_INLINE Vec<R> load_anywhere(const R* p) {
  Vec<R> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <class R>
FASTMETA_INLINE void store_anywhere(R* p, Vec<R> v) {
  std::memcpy(p, &v, sizeof v);
}
template <class R>
FASTMETA_INLINE Vec<R> splat(R x) {
  return x - Vec<R>{};
}
template <class R>
FASTMETA_INLINE Vec<R> iota() {
  Vec<R> v;
  for (int l = 0; l < lanes<R>; ++l) v[l] = R(l);
  return v;
}

template <class V, class M>
FASTMETA_INLINE V select(M mask, V a, V b) {
  return mask ? a : b;
}
template <class V>
FASTMETA_INLINE V vmax(V a, V b) {
  return a > b ? a : b;
}
template <class V>
FASTMETA_INLINE V vmin(V a, V b) {
  return a < b ? a : b;
}

template <class R>
FASTMETA_INLINE Vec<R> absolute(Vec<R> x) {
  using I = Mask<R>;
  using Int = typename Simd<R>::Int;
  constexpr Int sign = Int(1) << (8 * sizeof(Int) - 1);
  return (Vec<R>)((I)x & ~(I{} + sign));
}
template <class R>
FASTMETA_INLINE Vec<R> copysign(Vec<R> magnitude, Vec<R> sign_of) {
  using I = Mask<R>;
  using Int = typename Simd<R>::Int;
  constexpr Int sign = Int(1) << (8 * sizeof(Int) - 1);
  return (Vec<R>)(((I)magnitude & ~(I{} + sign)) | ((I)sign_of & (I{} + sign)));
}

// Halves are added pairwise: a fixed order, whatever the compiler makes of it.
template <class R>
FASTMETA_INLINE R horizontal_sum(Vec<R> v) {
  R a[lanes<R>];
  std::memcpy(a, &v, sizeof v);
  for (int width = lanes<R> / 2; width > 0; width /= 2)
    for (int l = 0; l < width; ++l) a[l] += a[l + width];
  return a[0];
}
template <class R>
FASTMETA_INLINE Vec<R> shuffle(Vec<R> a, Vec<R> b, Mask<R> from) {
#if defined(__clang__)
  Vec<R> v;
  for (int l = 0; l < lanes<R>; ++l) v[l] = from[l] < lanes<R> ? a[from[l]] : b[from[l] - lanes<R>];
  return v;
#else
  return __builtin_shuffle(a, b, from);
#endif
}

// Lane by lane: b plus its neighbour where the lane has the bit, else a plus its neighbour.
// Neighbours are lanes that differ in the bit alone.
template <class R, int bit>
FASTMETA_INLINE Vec<R> fold(Vec<R> a, Vec<R> b) {
  Mask<R> own{}, other{}, neighbour{};
  for (int l = 0; l < lanes<R>; ++l) {
    own[l] = l & bit ? lanes<R> + l : l;
    other[l] = l & bit ? l : lanes<R> + l;
    neighbour[l] = l & bit ? lanes<R> + (l ^ bit) : (l ^ bit);
  }
  if constexpr (bit == 1) {  // no instruction swaps neighbours of two vectors, only of one
    const Vec<R> swapped = shuffle<R>(a, b, other);
    return shuffle<R>(a, b, own) + shuffle<R>(swapped, swapped, neighbour & (lanes<R> - 1));
  }
  return shuffle<R>(a, b, own) + shuffle<R>(a, b, neighbour);
}

// The sums of W vectors, vector i's in lane i, to the last bit as `horizontal_sum` of it.
template <class R, int bit = lanes<R> / 2>
FASTMETA_INLINE Vec<R> sums_of(const Vec<R>* v) {
  if constexpr (bit == 0) {
    return v[0];
  } else {
    Vec<R> folded[bit];
#pragma GCC unroll 16
    for (int i = 0; i < bit; ++i) folded[i] = fold<R, bit>(v[i], v[i + bit]);
    return sums_of<R, bit / 2>(folded);
  }
}

// The sums of `count` vectors at p: vector i's ends up in the lanes whose low bits are i.
template <class R, int count = lanes<R>>
FASTMETA_INLINE Vec<R> horizontal_sums(const R* p) {
  if constexpr (count == 1) {
    return load(p);
  } else {
    constexpr int half = count / 2;
    return fold<R, half>(horizontal_sums<R, half>(p), horizontal_sums<R, half>(p + half * lanes<R>));
  }
}

// ---- a few numbers, as many as 128 bits have, several times side by side ---------------------------------

template <class R>
constexpr int few = 16 / int(sizeof(R));
template <class R>
constexpr int groups = lanes<R> / few<R>;

// The few at p in every group; p is aligned to them.
template <class R>
FASTMETA_INLINE Vec<R> spread(const R* p) {
#if FASTMETA_VECTOR_BYTES == 64
  return (Vec<R>)_mm512_maskz_broadcast_f32x4(__mmask16(-1), _mm_load_ps(reinterpret_cast<const float*>(p)));
#elif FASTMETA_VECTOR_BYTES == 32
  return (Vec<R>)_mm256_broadcast_ps(reinterpret_cast<const __m128*>(p));
#else
  return load(p);
#endif
}
// Group g has the g-th number at p, in all its lanes.
template <class R>
FASTMETA_INLINE Vec<R> one_a_group(const R* p) {
  Vec<R> v{};
  std::memcpy(&v, p, sizeof(R) * groups<R>);
  Mask<R> from{};
  for (int l = 0; l < lanes<R>; ++l) from[l] = l / few<R>;
  return shuffle<R>(v, v, from);
}
// The sums over the groups of `count` = `groups` vectors: of the i-th in the i-th group.
template <class R, int count = groups<R>>
FASTMETA_INLINE Vec<R> sums_over_groups(const Vec<R>* v) {
  if constexpr (count == 1) {
    return v[0];
  } else {
    constexpr int half = count / 2;
    Vec<R> folded[half];
#pragma GCC unroll 16
    for (int i = 0; i < half; ++i) folded[i] = fold<R, half * few<R>>(v[i], v[i + half]);
    return sums_over_groups<R, half>(folded);
  }
}

// Swaps lanes and vectors across one bit of their numbers: all bits in turn transpose the block.
template <class R, int bit = lanes<R> / 2>
FASTMETA_INLINE void transpose_block(Vec<R>* v) {
  Mask<R> low{}, high{};
  for (int l = 0; l < lanes<R>; ++l) {
    low[l] = l & bit ? lanes<R> + (l ^ bit) : l;
    high[l] = l & bit ? lanes<R> + l : (l | bit);
  }
#pragma GCC unroll 16
  for (int i = 0; i < lanes<R>; ++i) {
    if (i & bit) continue;
    const Vec<R> a = v[i], b = v[i | bit];
    v[i] = shuffle<R>(a, b, low);
    v[i | bit] = shuffle<R>(a, b, high);
  }
  if constexpr (bit > 1) transpose_block<R, bit / 2>(v);
}

template <class R>
FASTMETA_INLINE R horizontal_max(Vec<R> v) {
  R a[lanes<R>];
  std::memcpy(a, &v, sizeof v);
  for (int width = lanes<R> / 2; width > 0; width /= 2)
    for (int l = 0; l < width; ++l) a[l] = a[l] > a[l + width] ? a[l] : a[l + width];
  return a[0];
}

FASTMETA_INLINE i64 ceil_div(i64 a, i64 b) { return (a + b - 1) / b; }
FASTMETA_INLINE i64 round_up(i64 a, i64 b) { return ceil_div(a, b) * b; }
FASTMETA_INLINE i64 smaller(i64 a, i64 b) { return a < b ? a : b; }
FASTMETA_INLINE i64 larger(i64 a, i64 b) { return a > b ? a : b; }

}  // namespace fastmeta::FASTMETA_ISA
