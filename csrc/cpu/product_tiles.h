// How the products of product.h are computed: tiles of sums in registers. For products.cpp, and its test.
#pragma once

#include "product_finish.h"

namespace fastmeta::FASTMETA_ISA {

template <class Lane, int MR, int NR, class R>
FASTMETA_INLINE void start(const Target<R>& target, i64 m, i64 n, Vec<R> (&acc)[MR][NR]) {
  using V = Vec<R>;
  constexpr int W = lanes<R>;
  const i64 c_n = std::is_same_v<Lane, Apart> ? target.c_n : W;
#pragma GCC unroll 16
  for (int j = 0; j < NR; ++j)
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i)
      acc[i][j] = target.continues ? load(target.c + (m + i) * target.c_m + (n + j) * c_n) : V{};
}

template <class Lane, int MR, int NR, class R>
FASTMETA_INLINE void tile(const Term<R>* terms, int n_terms, const Target<R>& target,
                          i64 m, i64 n) {
  using V = Vec<R>;
  constexpr int W = lanes<R>;
  V acc[MR][NR];
  start<Lane>(target, m, n, acc);
  for (int t = 0; t < n_terms; ++t) {
    const Term<R>& term = terms[t];
    const R* a = term.a + m * term.a_m;
    const R* b = term.b + n * term.b_n;
    const i64 a_m = term.a_m, a_k = term.a_k, b_k = term.b_k;
    const i64 b_n = std::is_same_v<Lane, Broadcast> ? W : term.b_n;
    for (i64 k = term.depth; k > 0; --k) {
      V column[NR];
#pragma GCC unroll 16
      for (int j = 0; j < NR; ++j) column[j] = Lane::column(b + j * b_n);
#pragma GCC unroll 16
      for (int i = 0; i < MR; ++i) {
        const V element = Lane::element(a + i * a_m);
#pragma GCC unroll 16
        for (int j = 0; j < NR; ++j) acc[i][j] += element * column[j];
      }
      a += a_k;
      b += b_k;
    }
  }
  finish<Lane>(target, m, n, acc);
}

// A grid of equal tiles.
struct Grid {
  i64 m, m_tiles, n, n_tiles;
  bool columns_outside;  // the order in which the tiles are visited
};

template <class Lane, int MR, int NR, class R>
__attribute__((noinline)) void tiles(const Term<R>* terms, int n_terms, const Target<R>& target,
                                     const Grid& grid) {
  if (grid.columns_outside) {
    for (i64 j = 0; j < grid.n_tiles; ++j)
      for (i64 i = 0; i < grid.m_tiles; ++i)
        tile<Lane, MR, NR>(terms, n_terms, target, grid.m + i * MR, grid.n + j * NR);
  } else {
    for (i64 i = 0; i < grid.m_tiles; ++i)
      for (i64 j = 0; j < grid.n_tiles; ++j)
        tile<Lane, MR, NR>(terms, n_terms, target, grid.m + i * MR, grid.n + j * NR);
  }
}

template <class Lane, int MR, int NR, class R>
FASTMETA_INLINE void with_rows(i64 rows, const Term<R>* terms, int n_terms,
                               const Target<R>& target, const Grid& grid) {
  if constexpr (MR > 0) {
    if (rows == MR)
      tiles<Lane, MR, NR>(terms, n_terms, target, grid);
    else
      with_rows<Lane, MR - 1, NR>(rows, terms, n_terms, target, grid);
  }
}

template <class Lane, int NR, class R>
FASTMETA_INLINE void with_columns(i64 rows, i64 columns, const Term<R>* terms, int n_terms,
                                  const Target<R>& target, const Grid& grid) {
  if constexpr (NR > 0) {
    if (columns == NR)
      with_rows<Lane, max_rows(NR), NR>(rows, terms, n_terms, target, grid);
    else
      with_columns<Lane, NR - 1>(rows, columns, terms, n_terms, target, grid);
  }
}

// Whichever loop is outside, its operand is read once and the other once a tile of it, which costs
// nothing while that one stays in the first-level cache.
template <class Lane, class R>
bool walks_columns_outside(const Term<R>* terms, int n_terms, i64 m, i64 n, i64 row_tiles,
                           i64 column_tiles) {
  constexpr i64 cache = 24 << 10;  // of 32 KiB and more
  constexpr i64 a_width = Lane::a_is_vector ? lanes<R> : 1, b_width = Lane::template b_width<R>;
  i64 depth = 0;
  for (int t = 0; t < n_terms; ++t) depth += terms[t].depth;
  const i64 a = m * a_width * depth * i64(sizeof(R)), b = n * b_width * depth * i64(sizeof(R));
  const i64 columns_first = b + (a <= cache ? a : a * column_tiles);
  const i64 rows_first = a + (b <= cache ? b : b * row_tiles);
  return columns_first < rows_first;
}

template <class Lane, class R>
void product_at_once(const Term<R>* terms, int n_terms, const Target<R>& target, i64 m, i64 n) {
  const Cut columns(n, max_columns), rows(m, max_rows(int(columns.size)));
  const bool columns_outside = walks_columns_outside<Lane, R>(terms, n_terms, m, n, rows.tiles, columns.tiles);
  const auto part = [&](bool large_rows, bool large_columns) {
    const i64 m0 = large_rows ? 0 : rows.large * rows.size;
    const i64 n0 = large_columns ? 0 : columns.large * columns.size;
    const Grid grid{m0, large_rows ? rows.large : rows.tiles - rows.large,
                    n0, large_columns ? columns.large : columns.tiles - columns.large,
                    columns_outside};
    if (grid.m_tiles && grid.n_tiles)
      with_columns<Lane, max_columns>(rows.size - !large_rows, columns.size - !large_columns,
                                      terms, n_terms, target, grid);
  };
  part(true, true);
  part(true, false);
  part(false, true);
  part(false, false);
}

// Where a tile of columns meets more rows than the first-level cache holds beside it, every tile fetches
// them anew: then one term after the other, the sums as both at once. (Packs of 16 tasks on Zen 5,
// 10 x 40 x 40: 4.3 us for 5.1.)
template <class Lane, class R>
bool goes_term_by_term(const Term<R>* terms, int n_terms, i64 m) {
  constexpr i64 cache = 32 << 10;
  constexpr i64 a_width = Lane::a_is_vector ? lanes<R> : 1;
  return n_terms == 2 && m * a_width * (terms[0].depth + terms[1].depth) * i64(sizeof(R)) > cache;
}

template <class Lane, class R>
void product(const Term<R>* terms, int n_terms, const Target<R>& target, i64 m, i64 n) {
  const bool plain = target.finish == Finish::Store || target.finish == Finish::Bias;
  if (plain && goes_term_by_term<Lane>(terms, n_terms, m)) {
    Target<R> first = target, then = target;
    first.finish = Finish::Store, then.continues = true;
    product<Lane>(terms, 1, first, m, n);
    return product<Lane>(terms + 1, 1, then, m, n);
  }
  constexpr int most_terms = 3;
  const bool in_pieces = plain || target.finish == Finish::Add;
  i64 depth = 0;
  for (int t = 0; t < n_terms; ++t) depth = larger(depth, terms[t].depth);
  if (!in_pieces || n_terms > most_terms || depth <= deepest)
    return product_at_once<Lane>(terms, n_terms, target, m, n);
  const i64 pieces = ceil_div(depth, deepest);
  Target<R> then = target;
  for (i64 piece = 0; piece < pieces; ++piece) {
    Term<R> some[most_terms];
    for (int t = 0; t < n_terms; ++t) {  // each by its own depth
      const i64 begin = terms[t].depth * piece / pieces;
      some[t] = terms[t];
      some[t].a += begin * terms[t].a_k;
      some[t].b += begin * terms[t].b_k;
      some[t].depth = terms[t].depth * (piece + 1) / pieces - begin;
    }
    product_at_once<Lane>(some, n_terms, then, m, n);
    then.finish = Finish::Add, then.continues = false;
  }
}

}  // namespace fastmeta::FASTMETA_ISA
