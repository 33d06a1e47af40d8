// Products by a thread block: every thread has tiles of MR rows x 4 columns in registers.
//
// Each element is one running sum over k in order, whatever the tile: the result does not depend on
// the number of threads. Operands lie in shared memory, rows 16-byte aligned and a multiple of four
// long, so that what a tile reads past its matrix's width is padding of the same row.
//
//   A along k (inputs, gradients) or along m (their transposes, for weight gradients) is contiguous,
//   B along n (weights, gradients) or along k (W^T). Along the contiguous side four numbers come at
//   once. With B along k a thread's columns are far apart, so that neighbouring threads read
//   neighbouring rows: those begin in different banks, since a row is an odd number of quads.
#pragma once

#include "scalar.cuh"
//
#include "../network/product.h"

namespace fastmeta::cuda {

struct BlockLane {};

// An address of the block's own shared memory, so that the compiler sees that it is one. Not by
// __builtin_assume(__isShared(p)): nvcc 13.0 then drops products of p where p is one of two.
template <class R>
FASTMETA_INLINE const R* shared(const R* p) {
#ifdef __CUDA_ARCH__
  extern __shared__ __align__(16) unsigned char memory[];
  const auto begin = unsigned(__cvta_generic_to_shared(memory));
  return reinterpret_cast<const R*>(memory + (unsigned(__cvta_generic_to_shared(p)) - begin));
#else
  return p;
#endif
}

// The columns of one tile.
struct Columns {
  int first, step;
  FASTMETA_INLINE int operator[](int j) const { return first + j * step; }
};

template <int MR, class R>
FASTMETA_INLINE void add_outer(R (&acc)[MR][4], const R (&a)[MR], const R (&b)[4]) {
#pragma unroll
  for (int i = 0; i < MR; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) acc[i][j] += a[i] * b[j];
}

// acc[i][j] += sum over k in [begin, end) of A(m + i, k) B(k, columns[j])
template <int MR, class R>
FASTMETA_INLINE void accumulate(R (&acc)[MR][4], const Term<R>& t, int m, int rows, Columns n,
                                int width, int begin, int end) {
  const bool ones = !t.a, transposed = t.a_m == 1, wide = t.b_n == 1;
  const R* b = shared(t.b);
  const int b_k = int(t.b_k), b_n = int(t.b_n), a_m = int(t.a_m), a_k = int(t.a_k);
  if (ones) {
    for (int k = begin; k < end; ++k) {
      const Quad<R> row = quad(b + k * b_k + n.first);
#pragma unroll
      for (int j = 0; j < 4; ++j) acc[0][j] += row.v[j];
    }
    return;
  }
  const R* a = shared(t.a);
  if (transposed) {
#pragma unroll 4
    for (int k = begin; k < end; ++k) {
      const Quad<R> row = quad(b + k * b_k + n.first);
      R column[MR];
      if constexpr (MR == 4) {
        const Quad<R> four = quad(a + k * a_k + m);
#pragma unroll
        for (int i = 0; i < MR; ++i) column[i] = four.v[i];
      } else {
#pragma unroll
        for (int i = 0; i < MR; ++i) column[i] = a[k * a_k + m + i];
      }
      add_outer<MR>(acc, column, row.v);
    }
    return;
  }
  // Rows and columns that are not there read those at the edge; nobody stores them.
  const R* row_of[MR];
#pragma unroll
  for (int i = 0; i < MR; ++i) row_of[i] = a + (m + i < rows ? m + i : rows - 1) * a_m;
  int k = begin;
  // Few rows leave registers for the loads of the next four k.
  [[maybe_unused]] constexpr int ahead = MR < 4 ? 2 : 1;
  if (wide) {
#pragma unroll ahead
    for (; k + 4 <= end; k += 4) {
      Quad<R> four[MR];
#pragma unroll
      for (int i = 0; i < MR; ++i) four[i] = quad(row_of[i] + k);
#pragma unroll
      for (int d = 0; d < 4; ++d) {
        const Quad<R> row = quad(b + (k + d) * b_k + n.first);
        R column[MR];
#pragma unroll
        for (int i = 0; i < MR; ++i) column[i] = four[i].v[d];
        add_outer<MR>(acc, column, row.v);
      }
    }
    for (; k < end; ++k) {
      const Quad<R> row = quad(b + k * b_k + n.first);
      R column[MR];
#pragma unroll
      for (int i = 0; i < MR; ++i) column[i] = row_of[i][k];
      add_outer<MR>(acc, column, row.v);
    }
    return;
  }
  const R* column_of[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) column_of[j] = b + (n[j] < width ? n[j] : width - 1) * b_n;
#pragma unroll ahead
  for (; k + 4 <= end; k += 4) {
    Quad<R> four[MR], down[4];
#pragma unroll
    for (int i = 0; i < MR; ++i) four[i] = quad(row_of[i] + k);
#pragma unroll
    for (int j = 0; j < 4; ++j) down[j] = quad(column_of[j] + k);
#pragma unroll
    for (int d = 0; d < 4; ++d) {
      R column[MR], row[4];
#pragma unroll
      for (int i = 0; i < MR; ++i) column[i] = four[i].v[d];
#pragma unroll
      for (int j = 0; j < 4; ++j) row[j] = down[j].v[d];
      add_outer<MR>(acc, column, row);
    }
  }
  for (; k < end; ++k) {
    R column[MR], row[4];
#pragma unroll
    for (int i = 0; i < MR; ++i) column[i] = row_of[i][k];
#pragma unroll
    for (int j = 0; j < 4; ++j) row[j] = column_of[j][k];
    add_outer<MR>(acc, column, row);
  }
}

template <class R>
FASTMETA_INLINE R finished(const Target<R>& t, i64 at, R rate, R acc) {
  switch (t.finish) {
    case Finish::Store:
    case Finish::Bias:
      return acc;
    case Finish::Add:
      return t.c[at] + acc;
    case Finish::Subtract:
      return t.c[at] - acc;
    case Finish::Descend:
      return t.from[at] - t.scale * acc;
    case Finish::Step:
      return t.from[at] - rate * acc;
    case Finish::RateGrad:
      return t.c[at] - t.from[at] * acc;
  }
  return acc;
}

template <int MR, class R>
FASTMETA_INLINE void put_tile(const Target<R>& t, const R (&acc)[MR][4], int m, int rows,
                              Columns n, int width) {
#pragma unroll
  for (int i = 0; i < MR; ++i) {
    if (m + i >= rows) break;
    const i64 row = (m + i) * t.c_m;
    if (n.step == 1 && t.finish <= Finish::Bias) {
      Quad<R> four;
#pragma unroll
      for (int j = 0; j < 4; ++j) four.v[j] = acc[i][j];
      put_quad(t.c + row + n.first, four);
      continue;
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (n[j] >= width) break;
      const R rate = t.finish == Finish::Step ? t.rate[(m + i) * t.rate_m + n[j] * t.rate_n] : R(0);
      t.c[row + n[j]] = finished(t, row + n[j], rate, acc[i][j]);
    }
  }
}

// Not inlined: one copy serves all products of a network's passes.
template <int MR, class R>
__device__ __noinline__ void tiles(const Term<R>* terms, int n_terms, const Target<R>& target,
                                   int rows, int width) {
  const int across = (width + 3) / 4, count = ((rows + MR - 1) / MR) * across;
  for (int tile = int(threadIdx.x); tile < count; tile += int(blockDim.x)) {
    const int down = tile / across, m = down * MR, first = tile - down * across;
    const bool far = n_terms > 0 && terms[0].b_n != 1;
    const Columns n = far ? Columns{first, across} : Columns{4 * first, 1};
    R acc[MR][4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const R start = target.finish == Finish::Bias ? target.row[n[j]] : R(0);
#pragma unroll
      for (int i = 0; i < MR; ++i) acc[i][j] = start;
    }
    const int depth = n_terms > 0 ? int(terms[0].depth) : 0;
    const int pieces = depth <= deepest ? 1 : (depth + deepest - 1) / deepest;
    R total[MR][4];
    for (int piece = 0; piece < pieces; ++piece) {
      if (piece > 0) {
#pragma unroll
        for (int i = 0; i < MR; ++i)
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            total[i][j] = piece > 1 ? total[i][j] + acc[i][j] : acc[i][j];
            acc[i][j] = 0;
          }
      }
      for (int t = 0; t < n_terms; ++t)
        accumulate<MR>(acc, terms[t], m, rows, n, width, piece * deepest,
                       lesser(depth, (piece + 1) * deepest));
    }
    if (pieces > 1) {
#pragma unroll
      for (int i = 0; i < MR; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) acc[i][j] += total[i][j];
    }
    put_tile<MR>(target, acc, m, rows, n, width);
  }
}

// The tile whose rounds take the least: four columns and MR rows cost 4 MR multiply-adds and about
// MR + 4 loads a step.
FASTMETA_INLINE int rows_of_tile(int rows, int width) {
  const int shift = 31 - __clz(int(blockDim.x)), threads = int(blockDim.x);
  const int across = (width + 3) / 4;
  int best = 1, least = 0;
  for (int mr = 1; mr <= 4; mr *= 2) {
    const int count = ((rows + mr - 1) / mr) * across;
    const int cost = ((count + threads - 1) >> shift) * (5 * mr + 4);
    if (mr == 1 || cost <= least) best = mr, least = cost;
  }
  return best;
}

template <class Lane, class R>
FASTMETA_INLINE void product(const Term<R>* terms, int n_terms, const Target<R>& target, i64 m,
                             i64 n) {
  const int rows = int(m), width = int(n), mr = rows_of_tile(rows, width);
  if (mr == 4)
    tiles<4>(terms, n_terms, target, rows, width);
  else if (mr == 2)
    tiles<2>(terms, n_terms, target, rows, width);
  else
    tiles<1>(terms, n_terms, target, rows, width);
}

}  // namespace fastmeta::cuda
