// The team of a GPU where one block is too small for a task, or leaves too much of the GPU idle: the
// blocks of a cluster, on compute capability 9.0 and later. Each holds some rows of every matrix of
// weights (Parameters::share) and is a Block in all it does with those; what they exchange goes
// through distributed shared memory, which every block lays out alike.
#pragma once

#include "team.cuh"

namespace fastmeta::cuda {

// Code for older GPUs has kernels of a cluster that do nothing.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr bool clusters = false;
FASTMETA_INLINE unsigned cluster_rank() { return 0; }
FASTMETA_INLINE void cluster_barrier() {}
FASTMETA_INLINE const void* of_rank(const void* p, int) { return p; }
#else
constexpr bool clusters = true;
FASTMETA_INLINE unsigned cluster_rank() { return __clusterRelativeBlockRank(); }
FASTMETA_INLINE void cluster_barrier() {
  __cluster_barrier_arrive();
  __cluster_barrier_wait();
}
FASTMETA_INLINE const void* of_rank(const void* p, int rank) {
  return __cluster_map_shared_rank(p, unsigned(rank));
}
#endif

template <class R>
struct Cluster : Block<R> {
  static constexpr bool shares = true;
  using Block<R>::barrier, Block<R>::each_element;

  // Of n rows: whole quads, so that they begin aligned, or all, which the first block then has.
  static FASTMETA_INLINE_BOTH i64 share(i64 n, int blocks) {
#ifdef __CUDA_ARCH__  // what fits is small, and divisions of 64 bits are slow
    return smaller(n, round_up(i64(unsigned(n + blocks - 1) / unsigned(blocks)), 4));
#else
    return smaller(n, round_up(ceil_div(n, blocks), 4));
#endif
  }

  static FASTMETA_INLINE int rank() { return int(cluster_rank()); }
  // What any thread of the cluster did before is seen by all after.
  static FASTMETA_INLINE void meet() { cluster_barrier(); }
  // A block's shared memory lives as long as the others may read it.
  static FASTMETA_INLINE void leave() { meet(); }

  static FASTMETA_INLINE void put_per_task(R* values, Slice s, R v) {
    if (rank() == 0) Block<R>::put_per_task(values, s, v);
  }

  static FASTMETA_INLINE Quad<R> quad_of(const R* p, int rank) {
    return quad(static_cast<const R*>(of_rank(p, rank)));
  }

  // The barriers around these are the caller's.
  //
  // to = the sum of all blocks' parts, in their order. Into its own part a block may write those
  // columns that no other block reads.
  static FASTMETA_INLINE void sum_parts(R* to, const R* part, i64 rows, i64 ld, i64 columns,
                                        int blocks) {
    each_element(rows, ceil_div(columns, 4), false, [&](int r, int q) {
      const i64 at = r * ld + 4 * q;
      Quad<R> sum = quad_of(part + at, 0);
      for (int b = 1; b < blocks; ++b) {
        const Quad<R> next = quad_of(part + at, b);
#pragma unroll
        for (int j = 0; j < 4; ++j) sum.v[j] += next.v[j];
      }
      put_quad(to + at, sum);
    });
  }
  // Columns of m that are not this block's, from those they belong to.
  static FASTMETA_INLINE void pull(R* m, i64 rows, i64 columns, i64 share) {
    const i64 ld = Block<R>::stride(columns);
    const int mine = rank();
    each_element(rows, ceil_div(columns, 4), false, [&](int r, int q) {
      const int owner = 4 * q / int(share);
      R* place = m + r * ld + 4 * q;
      if (owner != mine) put_quad(place, quad_of(place, owner));
    });
  }

  template <class F>
  static FASTMETA_INLINE void each_of(i64 rows, i64 ld, i64 first, i64 columns, F f) {
    each_element(rows, columns, false, [&](int r, int c) { f(i64(r * ld + first + c)); });
    barrier();
  }
  static FASTMETA_INLINE void zero_columns(R* to, i64 rows, i64 row_step, i64 columns) {
    for (i64 i = threadIdx.x; i < rows * columns; i += blockDim.x)
      to[i / columns * row_step + i % columns] = 0;
    barrier();
  }
};

}  // namespace fastmeta::cuda
