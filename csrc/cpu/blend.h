// A third team of a CPU: lanes are samples of a few tasks, as many tasks as 128 bits have numbers.
//
// A weight is held once a task and met by all samples in the lanes, so that a few tasks are in the cache
// where a Pack has four times as many; and the lanes are full with few tasks, unlike those of samples of one.
// Of a row of samples, lane l has sample l / few of task l % few; of a parameter, column l / few.
//
// Lanes without a sample have their task's last one once more, at no weight: what is computed of them is as
// finite as what it is, and their adjoints are 0.
#pragma once

#include "../network/row_team.h"
#include "team.h"

namespace fastmeta::FASTMETA_ISA {

// What samples see: vectors of them, number by number.
template <class R>
struct BlendRows : Pack<R> {
  static constexpr int W = lanes<R>;
  static constexpr i64 tasks = few<R>, samples = groups<R>;

  // f(lane, task of the slice, sample) of row s of n samples, without those that are not there.
  template <class F>
  static FASTMETA_INLINE void each_lane(i64 s, i64 n, Slice slice, F f) {
    for (i64 g = 0; g < smaller(samples, n - s * samples); ++g)
      for (i64 t = 0; t < slice.tasks; ++t) f(g * tasks + t, t, s * samples + g);
  }
  static FASTMETA_INLINE Vec<R> per_task(const R* values, i64 task_stride, Slice slice) {
    Vec<R> v{};
    for (i64 l = 0; l < W; ++l)
      if (l % tasks < slice.tasks) v[l] = values[(slice.first + l % tasks) * task_stride];
    return v;
  }

  // [T, n, columns], of samples and tasks that are not there 0.
  static void gather(R* to, const R* from, i64 task_stride, i64 row_step, i64 column_step, i64 n, i64 columns,
                     Slice slice) {
    from += slice.first * task_stride;
    for (i64 s = 0; s < ceil_div(n, samples); ++s, to += columns * W) {
      const R* of_lane[W] = {};
      each_lane(s, n, slice, [&](i64 l, i64 t, i64 sample) {
        of_lane[l] = from + t * task_stride + sample * row_step;
      });
      i64 c = 0;
      for (; column_step == 1 && c + W <= columns; c += W) {
        Vec<R> block[W];
        for (int l = 0; l < W; ++l) block[l] = of_lane[l] ? load_anywhere(of_lane[l] + c) : Vec<R>{};
        transpose_block<R>(block);
        for (int i = 0; i < W; ++i) store(to + (c + i) * W, block[i]);
      }
      for (; c < columns; ++c)
        for (int l = 0; l < W; ++l) to[c * W + l] = of_lane[l] ? of_lane[l][c * column_step] : R(0);
    }
  }
  static void scatter(R* to, const R* from, i64 task_stride, i64 row_step, i64 column_step, i64 n, i64 columns,
                      Slice slice) {
    to += slice.first * task_stride;
    for (i64 s = 0; s < ceil_div(n, samples); ++s, from += columns * W) {
      R* of_lane[W] = {};
      each_lane(s, n, slice, [&](i64 l, i64 t, i64 sample) {
        of_lane[l] = to + t * task_stride + sample * row_step;
      });
      i64 c = 0;
      for (; column_step == 1 && c + W <= columns; c += W) {
        Vec<R> block[W];
        for (int i = 0; i < W; ++i) block[i] = load(from + (c + i) * W);
        transpose_block<R>(block);
        for (int l = 0; l < W; ++l)
          if (of_lane[l]) store_anywhere(of_lane[l] + c, block[l]);
      }
      for (; c < columns; ++c)
        for (int l = 0; l < W; ++l)
          if (of_lane[l]) of_lane[l][c * column_step] = from[c * W + l];
    }
  }
  // The last sample into the lanes after it.
  static void repeat_last(R* rows, i64 n, i64 columns) {
    const i64 filled = n % samples;
    if (!filled) return;
    R* row = rows + n / samples * columns * W;
    for (i64 c = 0; c < columns; ++c)
      for (i64 l = filled * tasks; l < W; ++l) row[c * W + l] = row[c * W + (filled - 1) * tasks + l % tasks];
  }
  // Over a task's samples, in all lanes of it.
  static FASTMETA_INLINE Vec<R> over_samples(Vec<R> v) {
    R a[W];
    std::memcpy(a, &v, sizeof v);
    for (int width = W / 2; width >= tasks; width /= 2)
      for (int l = 0; l < width; ++l) a[l] += a[l + width];
    Vec<R> sums;
    for (int l = 0; l < W; ++l) sums[l] = a[l % tasks];
    return sums;
  }
};

template <class R>
struct Blend : CpuTeam<R> {
  using Real = R;
  static constexpr int W = lanes<R>;
  static constexpr i64 tasks = few<R>, element = few<R>;
  static constexpr bool transposes = false;
  static constexpr bool reads_shared = false;
  static constexpr const char* name = "blend";

  static i64 vectors(i64 columns) { return ceil_div(columns, groups<R>); }
  static i64 stride(i64 columns) { return vectors(columns) * W; }
  static i64 shared_stride(i64 columns) { return round_up(columns, groups<R>); }

  static FASTMETA_INLINE Vec<R> per_task(const R* values, i64 task_stride, Slice slice) {
    return BlendRows<R>::per_task(values, task_stride, slice);
  }
  static void put_per_task(R* values, Slice slice, Vec<R> v) {
    for (i64 t = 0; t < slice.tasks; ++t) values[slice.first + t] = v[t];
  }

  static void gather(R* to, const R* from, i64 task_stride, i64 row_step, i64 column_step, i64 rows, i64 columns,
                     Slice slice) {
    from += slice.first * task_stride;
    std::memset(to, 0, sizeof(R) * size_t(rows * stride(columns)));
    for (i64 t = 0; t < slice.tasks; ++t)
      for (i64 r = 0; r < rows; ++r)
        for (i64 c = 0; c < columns; ++c)
          to[r * stride(columns) + c * tasks + t] = from[t * task_stride + r * row_step + c * column_step];
  }
  static void scatter(R* to, const R* from, i64 task_stride, i64 row_step, i64 column_step, i64 rows, i64 columns,
                      Slice slice) {
    to += slice.first * task_stride;
    for (i64 t = 0; t < slice.tasks; ++t)
      for (i64 r = 0; r < rows; ++r)
        for (i64 c = 0; c < columns; ++c)
          to[t * task_stride + r * row_step + c * column_step] = from[r * stride(columns) + c * tasks + t];
  }
  // What a lane without a task has come to, from samples of 0, may be no number.
  static void add_to_shared(R* shared, const R* from, i64 rows, i64 columns, Slice slice) {
    const i64 ld = stride(columns);
    for (i64 r = 0; r < rows; ++r, from += ld, shared += shared_stride(columns))
      for (i64 c = 0; c < columns; ++c) {
        R sum = 0;
        for (i64 t = 0; t < slice.tasks; ++t) sum += from[c * tasks + t];
        shared[c] += sum;
      }
  }
  static void spread(R* to, const R* shared, i64 rows, i64 columns) {
    for (i64 i = 0; i < rows * vectors(columns); ++i) store(to + i * W, shared_value(shared, i));
  }
  static FASTMETA_INLINE Vec<R> shared_value(const R* shared, i64 v) {
    return one_a_group(shared + v * groups<R>);
  }
};

template <class R>
struct RowTeamOf<Blend<R>> {
  using Rows = BlendRows<R>;
  static constexpr i64 samples = groups<R>;
};

}  // namespace fastmeta::FASTMETA_ISA
