// What a block of a cluster is (cluster.cuh): its threads share a part of a task. Whatever ends in a store ends in
// a barrier, but for products: the passes know what follows them.
#pragma once

#include "loop.h"
#include "product.cuh"

namespace fastmeta::cuda {

template <class R>
struct Block : BlockLayout<R> {
  using Lane = BlockLane;
  static constexpr bool shares = false, steps_by_one_rate = false, has_dual_form = false;
  static constexpr bool has_lanes_along_inputs = false;

  static FASTMETA_INLINE_BOTH i64 vectors(i64 columns) { return columns; }
  // An odd number of quads: see product.cuh.
  static FASTMETA_INLINE_BOTH i64 stride(i64 columns) { return 4 * (ceil_div(columns, 4) | 1); }
  static FASTMETA_INLINE_BOTH i64 shared_stride(i64 columns) { return stride(columns); }

  static FASTMETA_INLINE bool valid(i64, i64) { return true; }
  static FASTMETA_INLINE R column(i64 v) { return R(v); }
  static FASTMETA_INLINE R across_sum(R v) { return v; }
  static FASTMETA_INLINE R across_max(R v) { return v; }
  static FASTMETA_INLINE R active(Slice) { return R(1); }
  static FASTMETA_INLINE R per_task(const R* values, i64 task_stride, Slice s) {
    return values[s.first * task_stride];
  }
  static FASTMETA_INLINE void put_per_task(R* values, Slice s, R v) {
    if (threadIdx.x == 0) values[s.first] = v;
  }
  static FASTMETA_INLINE const R* ones() { return nullptr; }

  static FASTMETA_INLINE int rank() { return 0; }
  static FASTMETA_INLINE void barrier() { __syncthreads(); }
  static FASTMETA_INLINE void leave() {}
  template <class F>
  static FASTMETA_INLINE void each(i64 n, F f) {
    for (int i = int(threadIdx.x); i < int(n); i += int(blockDim.x)) f(i64(i));
    barrier();
  }
  template <class F>
  static FASTMETA_INLINE void each_row(i64 rows, F f) { each(rows, f); }
  // Every thread adds up all rows, in their order.
  template <class F>
  static FASTMETA_INLINE R sum_rows(i64 rows, R* scratch, F f) {
    each(rows, [&](i64 s) { scratch[s] = f(s); });
    R sum = 0;
    for (int s = 0; s < int(rows); ++s) sum += scratch[s];
    barrier();
    return sum;
  }
  static FASTMETA_INLINE void zero(R* p, i64 n) {
    for (i64 i = threadIdx.x; i < n; i += blockDim.x) p[i] = 0;
    barrier();
  }
  static FASTMETA_INLINE void add(R* sum, const R* more, i64 n) {
    each(n, [&](i64 i) { sum[i] += more[i]; });
  }
  static FASTMETA_INLINE void copy(R* to, const R* from, i64 n) {
    for (i64 i = threadIdx.x; i < n; i += blockDim.x) to[i] = from[i];
    barrier();
  }

  // f(row, column) for all of a matrix, neighbouring threads along the side that is contiguous in
  // PyTorch's layout. The barrier is the caller's.
  template <class F>
  static FASTMETA_INLINE void each_element(i64 rows, i64 columns, bool down, F f) {
    const int height = int(rows), width = int(columns), side = down ? height : width;
    for (int i = int(threadIdx.x); i < height * width; i += int(blockDim.x)) {
      const int far = i / side, near = i - far * side;
      f(down ? near : far, down ? far : near);
    }
  }
  static FASTMETA_INLINE void gather(R* to, const R* from, i64 task_stride, i64 row_step,
                                     i64 column_step, i64 rows, i64 columns, Slice s) {
    const R* mine = from + s.first * task_stride;
    const int ld = int(stride(columns));
    each_element(rows, columns, row_step < column_step, [&](int r, int c) {
      to[r * ld + c] = mine[r * row_step + c * column_step];
    });
    barrier();
  }
  static FASTMETA_INLINE void scatter(R* to, const R* from, i64 task_stride, i64 row_step,
                                      i64 column_step, i64 rows, i64 columns, Slice s) {
    R* mine = to + s.first * task_stride;
    const int ld = int(stride(columns));
    each_element(rows, columns, row_step < column_step, [&](int r, int c) {
      mine[r * row_step + c * column_step] = from[r * ld + c];
    });
    barrier();
  }
  static FASTMETA_INLINE void subtract(R* to, const R* from, i64 task_stride, i64 row_step,
                                       i64 rows, i64 columns, Slice s) {
    R* mine = to + s.first * task_stride;
    const int ld = int(stride(columns));
    each_element(rows, columns, false,
                 [&](int r, int c) { mine[r * row_step + c] -= from[r * ld + c]; });
    barrier();
  }
  static FASTMETA_INLINE void add_to_shared(R* sum, const R* from, i64 rows, i64 columns, Slice) {
    const int ld = int(stride(columns));
    each_element(rows, columns, false,
                 [&](int r, int c) { sum[r * ld + c] += from[r * ld + c]; });
    barrier();
  }
  static FASTMETA_INLINE void transpose(R*, const R*, i64, i64) {}

  // Rates stay where PyTorch has them: [steps or 1, O, I] or [steps or 1, O], or one a tensor.
  static FASTMETA_INLINE void put_rates(Target<R>& t, const Rate<R>& rate, i64 step, i64 down,
                                        i64 across, i64 first) {
    t.rate = rate.data + step * rate.step_stride + (rate.n > 1 ? first : 0);
    t.rate_m = rate.n > 1 ? down : 0;
    t.rate_n = rate.n > 1 ? across : 0;
  }
  // The barrier is the caller's.
  template <class Piece>
  static FASTMETA_INLINE void times_rates(R* to, const R* from, const Piece& p,
                                          const Rate<R>& rate, i64 step) {
    const int ld = int(stride(p.columns));
    const R* mine = rate.data ? rate.data + step * rate.step_stride : nullptr;
    const i64 down = rate.n > 1 ? p.row_step : 0, across = rate.n > 1 ? p.column_step : 0;
    each_element(p.rows, p.columns, p.row_step < p.column_step && rate.n > 1, [&](int r, int c) {
      const R alpha = mine ? mine[(p.first + r) * down + c * across] : R(0);
      to[r * ld + c] = alpha * from[r * ld + c];
    });
  }
};

}  // namespace fastmeta::cuda
