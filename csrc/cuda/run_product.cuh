// The products of a program, by all threads of a block: each has tiles of M rows x 4 columns in
// registers.
//
// Each element is a sum over k in order, in pieces of at most `deepest`, whatever the tile: the result
// does not depend on the number of threads. Operands lie in shared memory, rows 16-byte aligned and a multiple of four
// long, so that what a tile reads past its matrix's width is padding of the same row. Along the side
// that is contiguous four numbers come at once. Where B is contiguous along k (W^T), a thread's columns
// are far apart, so that neighbouring threads read neighbouring rows: those begin in different banks,
// since a row is an odd number of quads.
#pragma once

#include "program.h"
#include "scalar.cuh"

namespace fastmeta::cuda {

template <int M, class R>
struct Tile {
  R v[M][4];
};

template <int M, class R>
FASTMETA_INLINE void set(Tile<M, R>& sums, const Quad<R>& row) {
#pragma unroll
  for (int i = 0; i < M; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) sums.v[i][j] = row.v[j];
}

template <int M, class R>
FASTMETA_INLINE void multiply_add(Tile<M, R>& sums, const R (&a)[M], const R (&b)[4]) {
#pragma unroll
  for (int i = 0; i < M; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) sums.v[i][j] += a[i] * b[j];
}

// Rows m .. of a matrix with `rows`; those that are not there are the last one, and nobody stores them.
template <int M, class R>
struct RowsOf {
  const R* p[M];
  FASTMETA_INLINE RowsOf(const R* matrix, int row, int m, int rows) {
#pragma unroll
    for (int i = 0; i < M; ++i) p[i] = matrix + lesser(m + i, rows - 1) * row;
  }
};

// sums += a b; a along k, b along its columns
template <int M, class R>
FASTMETA_INLINE void add_along(Tile<M, R>& sums, const RowsOf<M, R>& a, const R* b, int b_row,
                               int begin, int end) {
  int k = begin;
  const R* row = b + k * b_row;
#pragma unroll(steps_ahead(M))
  for (; k + 4 <= end; k += 4) {
    Quad<R> four[M];
#pragma unroll
    for (int i = 0; i < M; ++i) four[i] = quad(a.p[i] + k);
#pragma unroll
    for (int d = 0; d < 4; ++d, row += b_row) {
      R column[M];
#pragma unroll
      for (int i = 0; i < M; ++i) column[i] = four[i].v[d];
      multiply_add<M>(sums, column, quad(row).v);
    }
  }
#pragma unroll 1
  for (; k < end; ++k, row += b_row) {
    R column[M];
#pragma unroll
    for (int i = 0; i < M; ++i) column[i] = a.p[i][k];
    multiply_add<M>(sums, column, quad(row).v);
  }
}

// sums += a^T b; both along their columns, k from a row to the next
template <int M, class R>
FASTMETA_INLINE void add_down(Tile<M, R>& sums, const R* a, int a_row, const R* b, int b_row, int n) {
#pragma unroll(rows_ahead)
  for (int k = 0; k < n; ++k, a += a_row, b += b_row) {
    R column[M];
    if constexpr (M == 4) {
      const Quad<R> four = quad(a);
#pragma unroll
      for (int i = 0; i < M; ++i) column[i] = four.v[i];
    } else {
#pragma unroll
      for (int i = 0; i < M; ++i) column[i] = a[i];
    }
    multiply_add<M>(sums, column, quad(b).v);
  }
}

// sums += a b^T; both along k
template <int M, class R>
FASTMETA_INLINE void add_far(Tile<M, R>& sums, const RowsOf<M, R>& a, const RowsOf<4, R>& b, int begin,
                             int end) {
  int k = begin;
#pragma unroll(steps_ahead(M))
  for (; k + 4 <= end; k += 4) {
    Quad<R> four[M], down[4];
#pragma unroll
    for (int i = 0; i < M; ++i) four[i] = quad(a.p[i] + k);
#pragma unroll
    for (int j = 0; j < 4; ++j) down[j] = quad(b.p[j] + k);
#pragma unroll
    for (int d = 0; d < 4; ++d) {
      R column[M], row[4];
#pragma unroll
      for (int i = 0; i < M; ++i) column[i] = four[i].v[d];
#pragma unroll
      for (int j = 0; j < 4; ++j) row[j] = down[j].v[d];
      multiply_add<M>(sums, column, row);
    }
  }
#pragma unroll 1
  for (; k < end; ++k) {
    R column[M], row[4];
#pragma unroll
    for (int i = 0; i < M; ++i) column[i] = a.p[i][k];
#pragma unroll
    for (int j = 0; j < 4; ++j) row[j] = b.p[j][k];
    multiply_add<M>(sums, column, row);
  }
}

// A number of which the compiler knows nothing: it makes no copies of a loop for its values, of which
// there would be a megabyte.
FASTMETA_INLINE int opaque(int value) {
#if defined(__CUDA_ARCH__) && !defined(FASTMETA_COMPILED)
  asm volatile("" : "+r"(value));
#endif
  return value;
}

// add(sums, begin, end) piece by piece.
template <int M, class R, class F>
FASTMETA_INLINE void add_in_pieces(Tile<M, R>& sums, int depth, F add) {
#pragma unroll 1
  for (int begin = 0; begin < depth; begin += deepest) {
    Tile<M, R> piece{};
    add(piece, begin, lesser(depth, begin + deepest));
#pragma unroll
    for (int i = 0; i < M; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) sums.v[i][j] += piece.v[i][j];
  }
}

}  // namespace fastmeta::cuda
