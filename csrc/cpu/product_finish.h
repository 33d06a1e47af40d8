// What becomes of a tile of sums.
#pragma once

#include <type_traits>

#include "product.h"

namespace fastmeta::FASTMETA_ISA {

// The rates of a vector of C, which has as many columns of a matrix.
template <class Lane, class R>
constexpr i64 rates_a_vector =
    std::is_same_v<Lane, Broadcast> ? lanes<R> : std::is_same_v<Lane, Spread> ? groups<R> : 1;
template <class Lane, class R>
FASTMETA_INLINE Vec<R> rates(const R* rate) {
  if constexpr (std::is_same_v<Lane, Broadcast>)
    return load(rate);
  else if constexpr (std::is_same_v<Lane, Spread>)
    return one_a_group(rate);
  else
    return splat(*rate);
}

// Puts a tile of sums where it belongs. The kind of the end is asked once a tile and not once a
// vector: at a depth of ten the asking took as long as the multiply-adds.
template <class Lane, int MR, int NR, class R>
FASTMETA_INLINE void finish(const Target<R>& target, i64 m, i64 n, const Vec<R> (&acc)[MR][NR]) {
  using V = Vec<R>;
  constexpr int W = lanes<R>;
  const i64 c_n = std::is_same_v<Lane, Apart> ? target.c_n : W;
  const i64 c_m = target.c_m, offset = m * c_m + n * c_n;
  R* c = target.c + offset;
  // f(i, j, where the vector lies from the first one)
  const auto each = [&](auto f) {
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 16
      for (int j = 0; j < NR; ++j) store(c + i * c_m + j * c_n, f(i, j, i * c_m + j * c_n));
  };
  switch (target.finish) {
    case Finish::Store:
      return each([&](int i, int j, i64) -> V { return acc[i][j]; });
    case Finish::Bias: {  // last: a sum that began with it would round all its terms at its size
      constexpr i64 width = Lane::template b_width<R>;
      V bias[NR];
#pragma GCC unroll 16
      for (int j = 0; j < NR; ++j) bias[j] = Lane::column(target.row + (n + j) * width);
      return each([&](int i, int j, i64) -> V { return bias[j] + acc[i][j]; });
    }
    case Finish::Add:
      return each([&](int i, int j, i64 at) -> V {
        return load(c + at) + acc[i][j];
      });
    case Finish::Subtract:
      return each([&](int i, int j, i64 at) -> V {
        return load(c + at) - acc[i][j];
      });
    case Finish::Descend: {
      const R* from = target.from + offset;
      const V scale = splat(target.scale);
      return each([&](int i, int j, i64 at) -> V { return load(from + at) - scale * acc[i][j]; });
    }
    case Finish::Step: {
      constexpr i64 width = rates_a_vector<Lane, R>;
      const R* from = target.from + offset;
      const i64 rate_m = target.rate_m;
      const R* rate = target.rate + m * rate_m + n * width;
      return each([&](int i, int j, i64 at) -> V {
        return load(from + at) - rates<Lane>(rate + i * rate_m + j * width) * acc[i][j];
      });
    }
    case Finish::RateGrad: {
      const R* from = target.from + offset;
      return each([&](int i, int j, i64 at) -> V {
        return load(c + at) - load(from + at) * acc[i][j];
      });
    }
  }
}

}  // namespace fastmeta::FASTMETA_ISA
