// Sums over the features of pairs with rows as lanes: the rows of a group are turned once, and no sums are
// folded. It pays where there are many columns for so many features.
#pragma once

#include "prototype_tiles.h"

namespace fastmeta::FASTMETA_ISA {

// Sums, totals, two rows and a column fill 32 registers.
constexpr int most_turned_columns = 12;

// With shorter vectors there is less to fold and no room for the sums: AVX2 took 1 % longer. A sum is one chain
// of its pieces, so there may not be too many of them. At 64 features 5 columns were slower and 20 faster.
template <class R>
bool is_worth_turning(i64 columns, i64 depth) {
  constexpr i64 turned_a_column = 11;  // features that are turned in the time of one column's folds
  return FASTMETA_VECTOR_BYTES == 64 && depth <= deepest_pair<R> / 2 && columns * turned_a_column > depth;
}

// to[d], lane r: feature d of row r.
template <class R>
void turn_group(const R* const* x, i64 depth, Vec<R>* to) {
  constexpr i64 W = lanes<R>;
  for (i64 d = 0; d < depth; d += W) {
    Vec<R> block[W];
    for (i64 i = 0; i < W; ++i) block[i] = load_anywhere(x[i] + d);
    transpose_block<R>(block);
    for (i64 i = 0; i < W; ++i) to[d + i] = block[i];
  }
}

// Sums of W features are added up: one chain over all of them would lose more than lanes of features do.
template <class Op, int G, int N, class R>
FASTMETA_INLINE void turned_tile(const Vec<R>* x, const R* y, i64 ld, i64 depth, Vec<R>* sums,
                                 i64 columns) {
  constexpr i64 W = lanes<R>;
  Vec<R> total[G * N] = {};
  for (i64 begin = 0; begin < depth; begin += W) {
    Vec<R> sum[G * N] = {};
    for (i64 d = begin; d < begin + W; ++d) {
      Vec<R> row[G];
#pragma GCC unroll 16
      for (int g = 0; g < G; ++g) row[g] = x[g * depth + d];
#pragma GCC unroll 16
      for (int j = 0; j < N; ++j) {
        Vec<R> column = splat(y[j * ld + d]);
        if constexpr (G > 1) keep_in_register(column);
#pragma GCC unroll 16
        for (int g = 0; g < G; ++g)
          sum[g * N + j] = Op::add(sum[g * N + j], Vec<R>{}, row[g], column);
      }
    }
#pragma GCC unroll 16
    for (int j = 0; j < G * N; ++j) total[j] += sum[j];
  }
#pragma GCC unroll 16
  for (int g = 0; g < G; ++g)
#pragma GCC unroll 16
    for (int j = 0; j < N; ++j) sums[g * columns + j] = total[g * N + j];
}

template <class Op, int G, int N = most_turned_columns / G, class R>
void turned_column_sums(const Vec<R>* x, const R* y, i64 ld, i64 columns, i64 depth, Vec<R>* sums,
                        i64 all) {
  if constexpr (N > 1)
    if (columns < N) return turned_column_sums<Op, G, N - 1>(x, y, ld, columns, depth, sums, all);
  turned_tile<Op, G, N>(x, y, ld, depth, sums, all);
}

// sums[g][columns], as `group_sums` of each of G turned groups.
template <class Op, int G, class R>
void turned_sums(const Vec<R>* x, const R* y, i64 ld, i64 columns, i64 depth, Vec<R>* sums) {
  const i64 tiles = ceil_div(columns, most_turned_columns / G);
  for (i64 i = 0; i < tiles; ++i) {
    const i64 n = columns * i / tiles, next = columns * (i + 1) / tiles;
    turned_column_sums<Op, G>(x, y + n * ld, ld, next - n, depth, sums + n, columns);
  }
}

}  // namespace fastmeta::FASTMETA_ISA
