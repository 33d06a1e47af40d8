// Products whose lanes run along the depth: C(m, n) = sum over terms and k of A(m, k) B(n, k), where the
// columns n are fewer than a vector has lanes. A step of k is a vector of both.
#pragma once

#include "product.h"

namespace fastmeta::FASTMETA_ISA {

// The sums of `n` vectors, a lane each; those that are missing are 0.
template <int n, class R>
FASTMETA_INLINE Vec<R> sums_of_some(const Vec<R>* v) {
  Vec<R> padded[lanes<R>] = {};
#pragma GCC unroll 16
  for (int i = 0; i < n; ++i) padded[i] = v[i];
  return sums_of<R>(padded);
}

// Adds to C(m .. m + M, n .. n + N).
template <int M, int N, class R>
FASTMETA_INLINE void add_inner_tile(const Term<R>* terms, int n_terms, const Target<R>& target, i64 m,
                                    i64 n, i64 begin, i64 end) {
  constexpr int W = lanes<R>, all = M * N;
  Vec<R> sum[all] = {};
  for (int t = 0; t < n_terms; ++t) {
    const Term<R>& term = terms[t];
    const R *a = term.a + m * term.a_m + begin * W, *b = term.b + n * term.b_n + begin * W;
    const i64 a_m = term.a_m, b_n = term.b_n;
    for (i64 k = begin; k < end; ++k, a += W, b += W) {
      Vec<R> column[N];
#pragma GCC unroll 16
      for (int j = 0; j < N; ++j) column[j] = load(b + j * b_n);
#pragma GCC unroll 16
      for (int i = 0; i < M; ++i) {
        const Vec<R> row = load(a + i * a_m);
#pragma GCC unroll 16
        for (int j = 0; j < N; ++j) sum[i * N + j] += row * column[j];
      }
    }
  }
  R folded[(all + W - 1) / W * W];
  constexpr int whole = all / W * W;
#pragma GCC unroll 16
  for (int first = 0; first < whole; first += W) {
    const Vec<R> some = sums_of<R>(sum + first);
    std::memcpy(folded + first, &some, sizeof some);
  }
  if constexpr (whole < all) {
    const Vec<R> some = sums_of_some<all - whole, R>(sum + whole);
    std::memcpy(folded + whole, &some, sizeof some);
  }
  R* c = target.c + m * target.c_m + n;
#pragma GCC unroll 16
  for (int i = 0; i < M; ++i)
#pragma GCC unroll 16
    for (int j = 0; j < N; ++j) c[i * target.c_m + j] += folded[i * N + j];
}

template <int N, class R>
__attribute__((noinline)) void add_inner_columns(const Term<R>* terms, int n_terms,
                                                 const Target<R>& target, i64 rows, i64 n, i64 begin,
                                                 i64 end) {
  constexpr int M = max_rows(N);
  i64 m = 0;
  for (; m + M <= rows; m += M) add_inner_tile<M, N>(terms, n_terms, target, m, n, begin, end);
  for (; m < rows; ++m) add_inner_tile<1, N>(terms, n_terms, target, m, n, begin, end);
}

template <int N = max_columns, class R>
FASTMETA_INLINE void add_inner_columns(i64 columns, const Term<R>* terms, int n_terms,
                                       const Target<R>& target, i64 rows, i64 n, i64 begin, i64 end) {
  if constexpr (N > 1)
    if (columns < N)
      return add_inner_columns<N - 1>(columns, terms, n_terms, target, rows, n, begin, end);
  add_inner_columns<N>(terms, n_terms, target, rows, n, begin, end);
}

// What lies behind the columns of a row becomes 0, or what the bias has there.
template <class R>
void inner_products(const Term<R>* terms, int n_terms, const Target<R>& target, i64 rows, i64 columns) {
  const Vec<R> start = target.finish == Finish::Bias ? load(target.row) : Vec<R>{};
  for (i64 m = 0; m < rows; ++m) store(target.c + m * target.c_m, start);
  const Cut cut(columns, max_columns);
  const i64 depth = n_terms ? terms[0].depth : 0;
  for (i64 begin = 0; begin < depth; begin += deepest) {
    const i64 end = smaller(depth, begin + deepest);
    for (i64 tile = 0, n = 0; tile < cut.tiles; ++tile) {
      const i64 width = cut.size - (tile >= cut.large);
      add_inner_columns(width, terms, n_terms, target, rows, n, begin, end);
      n += width;
    }
  }
}

}  // namespace fastmeta::FASTMETA_ISA
