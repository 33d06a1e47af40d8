// Register-tiled products C[m, n] = sum over terms and k of A(m, k) B(k, n), for any strides.
//
// Rows m and depth k are elements; columns n are vectors. Lane says how an element of A meets a
// vector of B: Broadcast (lanes are neighbouring columns of one task) or Direct (lanes are tasks).
#pragma once

#include "simd.h"
//
#include "../network/product.h"

namespace fastmeta::FASTMETA_ISA {

struct Broadcast {
  template <class R>
  static FASTMETA_INLINE Vec<R> operand(const R* a) { return splat(*a); }
};
struct Direct {
  template <class R>
  static FASTMETA_INLINE Vec<R> operand(const R* a) { return load(a); }
};

template <class Lane, class R>
FASTMETA_INLINE Vec<R> finished(const Target<R>& t, i64 m, i64 n, Vec<R> acc) {
  constexpr int W = lanes<R>;
  const i64 at = m * t.c_m + n * W;
  switch (t.finish) {
    case Finish::Store:
    case Finish::Bias:
      return acc;
    case Finish::Add:
      return load(t.c + at) + acc;
    case Finish::Subtract:
      return load(t.c + at) - acc;
    case Finish::Step: {
      constexpr i64 step = std::is_same_v<Lane, Broadcast> ? W : 1;
      const R* rate = t.rate + m * t.rate_m + n * step;
      if constexpr (std::is_same_v<Lane, Broadcast>)
        return load(t.from + at) - load(rate) * acc;
      else
        return load(t.from + at) - splat(*rate) * acc;
    }
    case Finish::RateGrad:
      return load(t.c + at) - load(t.from + at) * acc;
  }
  __builtin_unreachable();
}

template <class Lane, int MR, int NR, class R>
FASTMETA_INLINE void tile(const Term<R>* terms, int n_terms, const Target<R>& target,
                          i64 m, i64 n) {
  using V = Vec<R>;
  constexpr int W = lanes<R>;
  V acc[MR][NR];
#pragma GCC unroll 16
  for (int j = 0; j < NR; ++j) {
    const V start = target.finish == Finish::Bias ? load(target.row + (n + j) * W) : V{};
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) acc[i][j] = start;
  }
  for (int t = 0; t < n_terms; ++t) {
    const Term<R>& term = terms[t];
    const R* a = term.a + m * term.a_m;
    const R* b = term.b + n * term.b_n;
    const i64 a_m = term.a_m, a_k = term.a_k, b_k = term.b_k;
    const i64 b_n = std::is_same_v<Lane, Broadcast> ? W : term.b_n;
    for (i64 k = term.depth; k > 0; --k) {
      V column[NR];
#pragma GCC unroll 16
      for (int j = 0; j < NR; ++j) column[j] = load(b + j * b_n);
#pragma GCC unroll 16
      for (int i = 0; i < MR; ++i) {
        const V element = Lane::operand(a + i * a_m);
#pragma GCC unroll 16
        for (int j = 0; j < NR; ++j) acc[i][j] += element * column[j];
      }
      a += a_k;
      b += b_k;
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 16
    for (int j = 0; j < NR; ++j)
      store(target.c + (m + i) * target.c_m + (n + j) * W,
            finished<Lane>(target, m + i, n + j, acc[i][j]));
}

// Accumulators, one row of B and an element of A have to fit the register file:
// 32 registers with AVX-512, 16 otherwise.
constexpr int registers = FASTMETA_VECTOR_BYTES == 64 ? 32 : 16;
constexpr int max_columns = FASTMETA_VECTOR_BYTES == 64 ? 5 : 3;
constexpr int max_rows(int columns) {
  const int fit = (registers - 1 - columns) / columns;
  return fit < 8 ? fit : 8;
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

// n cut into as few tiles as possible, all of one size or one less: 10 rows are 5 + 5, not 6 + 4.
struct Cut {
  i64 tiles, size, large;  // `large` tiles of `size`, the others of size - 1
  Cut(i64 n, i64 most) : tiles(ceil_div(n, most)), size(ceil_div(n, tiles)) {
    large = n - tiles * (size - 1);
  }
};

template <class Lane, class R>
void product_at_once(const Term<R>* terms, int n_terms, const Target<R>& target, i64 m, i64 n) {
  const Cut columns(n, max_columns), rows(m, max_rows(int(columns.size)));
  // The operand that is read again and again should be the small one.
  constexpr i64 a_width = std::is_same_v<Lane, Broadcast> ? 1 : lanes<R>;
  const i64 a_size = m * a_width, b_size = n * lanes<R>;
  const bool columns_outside = b_size * (rows.tiles - 1) > a_size * (columns.tiles - 1);
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

// One running sum over 1600 features loses twice what PyTorch loses; sums of at most `deepest` terms,
// added up, lose less.
constexpr i64 deepest = 256;

template <class Lane, class R>
void product(const Term<R>* terms, int n_terms, const Target<R>& target, i64 m, i64 n) {
  const bool plain = target.finish == Finish::Store || target.finish == Finish::Bias;
  if (!plain || n_terms == 0 || terms[0].depth <= deepest)
    return product_at_once<Lane>(terms, n_terms, target, m, n);
  const i64 pieces = ceil_div(terms[0].depth, deepest);
  Target<R> then = target;
  for (i64 piece = 0; piece < pieces; ++piece) {
    const i64 begin = terms[0].depth * piece / pieces;
    const i64 end = terms[0].depth * (piece + 1) / pieces;
    Term<R> some[2];
    for (int t = 0; t < n_terms; ++t) {
      some[t] = terms[t];
      some[t].a += begin * terms[t].a_k;
      some[t].b += begin * terms[t].b_k;
      some[t].depth = end - begin;
    }
    product_at_once<Lane>(some, n_terms, then, m, n);
    then.finish = Finish::Add;
  }
}

}  // namespace fastmeta::FASTMETA_ISA
