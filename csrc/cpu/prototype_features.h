// Features as they lie in memory: of the kernels' type, or of half the size and converted a row at a
// time, as they are read and written. Without branches, so that the compiler makes vectors of it.
#pragma once

#include <cstdint>
#include <cstring>

#include "prototypes.h"
#include "simd.h"

namespace fastmeta::FASTMETA_ISA {

FASTMETA_INLINE std::uint32_t bits_of(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}
FASTMETA_INLINE float float_of(std::uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// Each rounds to the nearest, ties to even; NaN stays NaN.
struct BFloat16 {
  static FASTMETA_INLINE float read(std::uint16_t x) { return float_of(std::uint32_t(x) << 16); }
  static FASTMETA_INLINE std::uint16_t write(float x) {
    const std::uint32_t bits = bits_of(x), up = 0x7fff + ((bits >> 16) & 1);
    return std::uint16_t(x == x ? (bits + up) >> 16 : 0x7fc0);
  }
};
// Sums with powers of two do the work of denormal numbers: F. Giesen, "Float->half conversions".
struct Float16 {
  static FASTMETA_INLINE float read(std::uint16_t x) {
    const std::uint32_t magnitude = std::uint32_t(x & 0x7fff) << 13;
    const float normal = float_of(magnitude + (112u << 23));
    const float denormal = float_of(magnitude + (113u << 23)) - 0x1p-14f;
    const float value = magnitude < 1u << 23 ? denormal : normal;
    const std::uint32_t special = magnitude >= 31u << 23 ? 0x7f800000 : 0;  // infinite, or NaN
    return float_of(bits_of(value) | special | std::uint32_t(x & 0x8000) << 16);
  }
  static FASTMETA_INLINE std::uint16_t write(float x) {
    const std::uint32_t bits = bits_of(x), magnitude = bits & 0x7fffffff;
    const std::uint32_t denormal = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
    const std::uint32_t normal =
        (magnitude - (112u << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
    std::uint32_t half = magnitude < 113u << 23 ? denormal : normal;
    half = magnitude >= 0x477ff000 ? 0x7c00 : half;  // rounds to more than 65504
    half = magnitude > 0x7f800000 ? 0x7e00 : half;
    return std::uint16_t(half | ((bits >> 16) & 0x8000));
  }
};

template <class Half, class R>
void read_halves(const void* from, i64 begin, i64 n, R* to) {
  const auto* x = static_cast<const std::uint16_t*>(from) + begin;
  for (i64 i = 0; i < n; ++i) to[i] = R(Half::read(x[i]));
}
template <class Half, class R>
void write_halves(const R* from, i64 n, void* to, i64 begin) {
  auto* x = static_cast<std::uint16_t*>(to) + begin;
  for (i64 i = 0; i < n; ++i) x[i] = Half::write(float(from[i]));
}

// n numbers of a tensor from `begin` on: where they are if they need no conversion, else in scratch.
template <class R>
const R* read_features(const void* from, Storage storage, i64 begin, i64 n, R* scratch) {
  switch (storage) {
    case Storage::Whole:
      return static_cast<const R*>(from) + begin;
    case Storage::BFloat16:
      read_halves<BFloat16>(from, begin, n, scratch);
      break;
    case Storage::Float16:
      read_halves<Float16>(from, begin, n, scratch);
      break;
  }
  return scratch;
}

template <class R>
void write_features(const R* from, i64 n, void* to, Storage storage, i64 begin) {
  switch (storage) {
    case Storage::Whole:
      std::memcpy(static_cast<R*>(to) + begin, from, sizeof(R) * size_t(n));
      break;
    case Storage::BFloat16:
      write_halves<BFloat16>(from, n, to, begin);
      break;
    case Storage::Float16:
      write_halves<Float16>(from, n, to, begin);
      break;
  }
}

// Rows as whole vectors: where they are if they are that already, else in scratch, zeros behind.
template <class R>
const R* whole_rows(const void* from, Storage storage, i64 first, i64 rows, i64 features, R* scratch) {
  const i64 ld = round_up(features, lanes<R>);
  if (storage == Storage::Whole && ld == features)
    return static_cast<const R*>(from) + first * features;
  for (i64 r = 0; r < rows; ++r) {
    R* to = scratch + r * ld;
    const R* row = read_features(from, storage, (first + r) * features, features, to);
    if (row != to) std::memcpy(to, row, sizeof(R) * size_t(features));
    std::memset(to + features, 0, sizeof(R) * size_t(ld - features));
  }
  return scratch;
}

}  // namespace fastmeta::FASTMETA_ISA
