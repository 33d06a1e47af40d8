// Products that are summed over the samples in the lanes as well: the gradients of weights where lanes are
// samples of a few tasks. For products.cpp, and its test.
//
// A tile has the columns of one vector of C, and a vector of sums for each; those are added up across lanes
// before they go where C is. Depth is samples, often two or five vectors of them, so rows are what a tile has
// many of: each needs one vector of A for `groups` multiply-adds.
#pragma once

#include "product_finish.h"

namespace fastmeta::FASTMETA_ISA {

// NC: the columns that there are, of those of a vector.
template <int MR, int NC, class R>
FASTMETA_INLINE void tile_over_groups(const Term<R>* terms, int n_terms, const Target<R>& target, i64 m,
                                      i64 vector) {
  using V = Vec<R>;
  V acc[MR][groups<R>]{};
  for (int t = 0; t < n_terms; ++t) {
    const Term<R>& term = terms[t];
    const R *a = term.a + m * term.a_m, *b = term.b + vector * groups<R> * term.b_n;
    const i64 a_m = term.a_m, b_n = term.b_n;
    for (i64 k = term.depth; k > 0; --k, a += term.a_k, b += term.b_k) {
      V column[NC];
#pragma GCC unroll 16
      for (int j = 0; j < NC; ++j) column[j] = load(b + j * b_n);
#pragma GCC unroll 16
      for (int i = 0; i < MR; ++i) {
        const V element = load(a + i * a_m);
#pragma GCC unroll 16
        for (int j = 0; j < NC; ++j) acc[i][j] += element * column[j];
      }
    }
  }
  V sums[MR][1];
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i) sums[i][0] = sums_over_groups<R>(acc[i]);
  finish<Spread>(target, m, vector, sums);
}

template <int MR, int NC, class R>
__attribute__((noinline)) void rows_over_groups(const Term<R>* terms, int n_terms, const Target<R>& target,
                                                i64 m, i64 tiles, i64 first, i64 vectors) {
  for (i64 v = first; v < first + vectors; ++v)
    for (i64 i = 0; i < tiles; ++i) tile_over_groups<MR, NC>(terms, n_terms, target, m + i * MR, v);
}

template <int NC, int MR, class R>
void with_rows_over_groups(i64 rows, const Term<R>* terms, int n_terms, const Target<R>& target, i64 m,
                           i64 tiles, i64 first, i64 vectors) {
  if constexpr (MR > 0) {
    if (rows == MR)
      rows_over_groups<MR, NC>(terms, n_terms, target, m, tiles, first, vectors);
    else
      with_rows_over_groups<NC, MR - 1>(rows, terms, n_terms, target, m, tiles, first, vectors);
  }
}

template <int NC, class R>
void columns_over_groups(i64 columns, const Term<R>* terms, int n_terms, const Target<R>& target, i64 m,
                         i64 first, i64 vectors) {
  if constexpr (NC > 0) {
    if (columns != NC) return columns_over_groups<NC - 1>(columns, terms, n_terms, target, m, first, vectors);
    constexpr int fit = max_rows(groups<R>), most = fit > 0 ? fit : 1;
    const Cut rows(m, most);
    const i64 large = rows.large * rows.size;
    if (rows.large) with_rows_over_groups<NC, most>(rows.size, terms, n_terms, target, 0, rows.large, first, vectors);
    if (rows.tiles > rows.large)
      with_rows_over_groups<NC, most>(rows.size - 1, terms, n_terms, target, large, rows.tiles - rows.large, first,
                                      vectors);
  }
}

template <class R>
void product_over_groups(const Term<R>* terms, int n_terms, const Target<R>& target, i64 m, i64 n) {
  constexpr i64 width = groups<R>;
  const i64 whole = n / width, rest = n % width;
  if (whole) columns_over_groups<int(width)>(width, terms, n_terms, target, m, 0, whole);
  if (rest) columns_over_groups<int(width)>(rest, terms, n_terms, target, m, whole, 1);
}

}  // namespace fastmeta::FASTMETA_ISA
