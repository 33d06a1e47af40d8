// Register-tiled products C[m, n] = sum over terms and k of A(m, k) B(k, n), for any strides.
//
// Rows m and depth k are elements; columns n are vectors. Lane says how an element of A meets a column
// of B: Broadcast (lanes are neighbouring columns of one task), Direct (lanes are tasks) or Shared (lanes
// are tasks that have B and the bias in common, so that a column is a number).
#pragma once

#include "simd.h"
//
#include "../network/product.h"

namespace fastmeta::FASTMETA_ISA {

struct Broadcast {
  static constexpr bool a_is_vector = false, b_is_vector = true;
  template <class R>
  static FASTMETA_INLINE Vec<R> element(const R* a) { return splat(*a); }
  template <class R>
  static FASTMETA_INLINE Vec<R> column(const R* b) { return load(b); }
};
struct Direct {
  static constexpr bool a_is_vector = true, b_is_vector = true;
  template <class R>
  static FASTMETA_INLINE Vec<R> element(const R* a) { return load(a); }
  template <class R>
  static FASTMETA_INLINE Vec<R> column(const R* b) { return load(b); }
};
struct Shared {
  static constexpr bool a_is_vector = true, b_is_vector = false;
  template <class R>
  static FASTMETA_INLINE Vec<R> element(const R* a) { return load(a); }
  template <class R>
  static FASTMETA_INLINE Vec<R> column(const R* b) { return splat(*b); }
};

// Puts a tile of sums where it belongs. The kind of the end is asked once a tile and not once a
// vector: at a depth of ten the asking took as long as the multiply-adds.
template <class Lane, int MR, int NR, class R>
FASTMETA_INLINE void finish(const Target<R>& target, i64 m, i64 n, const Vec<R> (&acc)[MR][NR]) {
  using V = Vec<R>;
  constexpr int W = lanes<R>;
  const i64 c_m = target.c_m, offset = m * c_m + n * W;
  R* c = target.c + offset;
  // f(i, j, where the vector lies from the first one)
  const auto each = [&](auto f) {
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 16
      for (int j = 0; j < NR; ++j) store(c + i * c_m + j * W, f(i, j, i * c_m + j * W));
  };
  switch (target.finish) {
    case Finish::Store:
    case Finish::Bias:
      return each([&](int i, int j, i64) -> V { return acc[i][j]; });
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
      constexpr bool a_vector = std::is_same_v<Lane, Broadcast>;
      const R* from = target.from + offset;
      const i64 rate_m = target.rate_m;
      const R* rate = target.rate + m * rate_m + n * (a_vector ? W : 1);
      return each([&](int i, int j, i64 at) -> V {
        if constexpr (a_vector)
          return load(from + at) - load(rate + i * rate_m + j * W) * acc[i][j];
        else
          return load(from + at) - splat(rate[i * rate_m + j]) * acc[i][j];
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

template <class Lane, int MR, int NR, class R>
FASTMETA_INLINE void start(const Target<R>& target, i64 m, i64 n, Vec<R> (&acc)[MR][NR]) {
  using V = Vec<R>;
  constexpr int W = lanes<R>;
  constexpr i64 width = Lane::b_is_vector ? lanes<R> : 1;
#pragma GCC unroll 16
  for (int j = 0; j < NR; ++j) {
    const V first = target.finish == Finish::Bias ? Lane::column(target.row + (n + j) * width) : V{};
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i)
      acc[i][j] = target.continues ? load(target.c + (m + i) * target.c_m + (n + j) * W) : first;
  }
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

// Whichever loop is outside, its operand is read once and the other once a tile of it, which costs
// nothing while that one stays in the first-level cache.
template <class Lane, class R>
bool walks_columns_outside(const Term<R>* terms, int n_terms, i64 m, i64 n, i64 row_tiles,
                           i64 column_tiles) {
  constexpr i64 cache = 24 << 10;  // of 32 KiB and more
  constexpr i64 a_width = Lane::a_is_vector ? lanes<R> : 1, b_width = Lane::b_is_vector ? lanes<R> : 1;
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

// One running sum over 1600 features loses twice what PyTorch loses; sums of at most `deepest` terms,
// added up, lose less.
constexpr i64 deepest = 256;

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
    product<Lane>(terms, 1, target, m, n);
    Target<R> then = target;
    then.finish = Finish::Store, then.continues = true;
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
