// The two teams of a CPU: one thread, with the lanes of its vectors spent in one of two ways.
//
//   Solo  one task; lanes are neighbouring columns, a row is padded to whole vectors.
//   Pack  as many tasks as a vector has lanes, one a lane: no padding inside a task, no
//         transposes, no horizontal sums, whatever the widths. Best for narrow networks.
//
// Everything above sees matrices [rows][vectors] and never asks which of the two it runs on.
#pragma once

#include "cpu_team.h"

namespace fastmeta::FASTMETA_ISA {

// `tasks` consecutive tasks beginning at `first`; tasks < Team::tasks in the last pack.
struct Slice {
  i64 first, tasks;
};

template <class R>
struct Solo : CpuTeam<R> {
  using Real = R;
  using Lane = Broadcast;
  static constexpr int W = lanes<R>;
  static constexpr i64 tasks = 1;
  static constexpr bool transposes = true;  // W^T is a matrix of its own
  static constexpr bool reads_shared = true;  // shared layout is its own layout
  static constexpr bool has_dual_form = true;
  static constexpr bool has_lanes_along_inputs = true;
  static constexpr const char* name = "solo";

  static i64 vectors(i64 columns) { return ceil_div(columns, W); }
  static i64 stride(i64 columns) { return vectors(columns) * W; }
  static constexpr i64 element = 1;
  // Size of one row when only one value a column is held, shared by all tasks of the team.
  static i64 shared_stride(i64 columns) { return stride(columns); }

  static FASTMETA_INLINE auto valid(i64 v, i64 columns) {
    return iota<R>() < R(columns - v * W);
  }
  static FASTMETA_INLINE Vec<R> column(i64 v) { return iota<R>() + R(v * W); }
  static FASTMETA_INLINE Vec<R> across_sum(Vec<R> v) { return splat(horizontal_sum<R>(v)); }
  static FASTMETA_INLINE Vec<R> across_max(Vec<R> v) { return splat(horizontal_max<R>(v)); }

  // 1 in the lanes that hold a task.
  static FASTMETA_INLINE Vec<R> active(Slice) { return splat(R(1)); }
  // A value a task: every lane holds it.
  static FASTMETA_INLINE Vec<R> per_task(const R* values, i64 task_stride, Slice s) {
    return splat(values[s.first * task_stride]);
  }
  static void put_per_task(R* values, Slice s, Vec<R> v) { values[s.first] = v[0]; }

  // [rows, columns] of each task, row_step and column_step in scalars, into team layout.
  static void gather(R* to, const R* from, i64 task_stride, i64 row_step, i64 column_step, i64 rows,
                     i64 columns, Slice s) {
    from += s.first * task_stride;
    const i64 ld = stride(columns);
    for (i64 r = 0; r < rows; ++r) {
      copy_row(to + r * ld, 1, from + r * row_step, column_step, columns);
      for (i64 c = columns; c < ld; ++c) to[r * ld + c] = 0;
    }
  }
  static void scatter(R* to, const R* from, i64 task_stride, i64 row_step, i64 column_step,
                      i64 rows, i64 columns, Slice s) {
    to += s.first * task_stride;
    const i64 ld = stride(columns);
    for (i64 r = 0; r < rows; ++r) copy_row(to + r * row_step, column_step, from + r * ld, 1, columns);
  }
  static void copy_row(R* to, i64 to_step, const R* from, i64 from_step, i64 n) {
    if (to_step == 1 && from_step == 1) {
      std::memcpy(to, from, sizeof(R) * size_t(n));
      return;
    }
    for (i64 c = 0; c < n; ++c) to[c * to_step] = from[c * from_step];
  }
  // n samples [n][width] as PyTorch has them, each less the center and a column; the columns that fill the
  // last vector are 0.
  static void columns_of(R* to, i64 ld, const R* samples, i64 n, i64 width, const R* center) {
    for (i64 s0 = 0; s0 < n; s0 += W)
      for (i64 c0 = 0; c0 < width; c0 += W) {
        const i64 filled = smaller(W, width - c0);
        Vec<R> block[W], origin{};
        std::memcpy(&origin, center + c0, sizeof(R) * size_t(filled));
        for (i64 i = 0; i < W; ++i) {
          block[i] = Vec<R>{};
          const R* from = samples + (s0 + i) * width + c0;
          if (s0 + i >= n) continue;
          if (filled == W)
            block[i] = load_anywhere(from);
          else
            std::memcpy(&block[i], from, sizeof(R) * size_t(filled));
          block[i] -= origin;
        }
        transpose_block<R>(block);
        for (i64 i = 0; i < filled; ++i) store(to + (c0 + i) * ld + s0, block[i]);
      }
  }
  // The sum over the team's tasks, added to a matrix that is shared by all tasks.
  static void add_to_shared(R* shared, const R* from, i64 rows, i64 columns, Slice) {
    const i64 n = rows * stride(columns);
    for (i64 i = 0; i < n; i += W) store(shared + i, load(shared + i) + load(from + i));
  }
  static void spread(R* to, const R* shared, i64 rows, i64 columns) {
    std::memcpy(to, shared, sizeof(R) * size_t(rows * stride(columns)));
  }
  static FASTMETA_INLINE Vec<R> shared_value(const R* shared, i64 v) { return load(shared + v * W); }

  // B(k, n) = M(n, k)
  static void transpose(R* to, const R* from, i64 rows, i64 columns) {
    const i64 ld = stride(columns), ldt = stride(rows);
    for (i64 c0 = 0; c0 < columns; c0 += W)
      for (i64 r0 = 0; r0 < ldt; r0 += W) {
        Vec<R> block[W];
        for (int i = 0; i < W; ++i)
          block[i] = r0 + i < rows ? load(from + (r0 + i) * ld + c0) : Vec<R>{};
        transpose_block<R>(block);
        const i64 n = smaller(W, columns - c0);
        for (i64 i = 0; i < n; ++i) store(to + (c0 + i) * ldt + r0, block[i]);
      }
  }
};

template <class R>
struct Pack : CpuTeam<R> {
  using Real = R;
  using Lane = Direct;
  static constexpr int W = lanes<R>;
  static constexpr i64 tasks = W;
  static constexpr bool transposes = false;
  static constexpr bool reads_shared = false;
  static constexpr const char* name = "pack";

  static i64 vectors(i64 columns) { return columns; }
  static i64 stride(i64 columns) { return columns * W; }
  static constexpr i64 element = W;
  static i64 shared_stride(i64 columns) { return columns; }

  static FASTMETA_INLINE Mask<R> valid(i64, i64) { return Mask<R>{} == Mask<R>{}; }
  static FASTMETA_INLINE Vec<R> column(i64 v) { return splat(R(v)); }
  static FASTMETA_INLINE Vec<R> across_sum(Vec<R> v) { return v; }
  static FASTMETA_INLINE Vec<R> across_max(Vec<R> v) { return v; }

  static FASTMETA_INLINE Vec<R> active(Slice s) {
    return select(iota<R>() < R(s.tasks), splat(R(1)), Vec<R>{});
  }
  static FASTMETA_INLINE Vec<R> per_task(const R* values, i64 task_stride, Slice s) {
    Vec<R> v{};
    for (i64 t = 0; t < s.tasks; ++t) v[t] = values[(s.first + t) * task_stride];
    return v;
  }
  static void put_per_task(R* values, Slice s, Vec<R> v) {
    for (i64 t = 0; t < s.tasks; ++t) values[s.first + t] = v[t];
  }

  static void gather(R* to, const R* from, i64 task_stride, i64 row_step, i64 column_step, i64 rows,
                     i64 columns, Slice s) {
    from += s.first * task_stride;
    for (i64 r = 0; r < rows; ++r) {
      i64 c = 0;
      if (column_step == 1)
        for (; c + W <= columns; c += W, to += W * W) {
          Vec<R> block[W];
          for (int t = 0; t < W; ++t) {
            block[t] = Vec<R>{};
            if (t < s.tasks)
              std::memcpy(&block[t], from + t * task_stride + r * row_step + c, sizeof block[t]);
          }
          transpose_block<R>(block);
          for (int i = 0; i < W; ++i) store(to + i * W, block[i]);
        }
      for (; c < columns; ++c, to += W) {
        const R* at = from + r * row_step + c * column_step;
        for (i64 t = 0; t < s.tasks; ++t) to[t] = at[t * task_stride];
        for (i64 t = s.tasks; t < W; ++t) to[t] = 0;
      }
    }
  }
  static void scatter(R* to, const R* from, i64 task_stride, i64 row_step, i64 column_step,
                      i64 rows, i64 columns, Slice s) {
    to += s.first * task_stride;
    for (i64 r = 0; r < rows; ++r) {
      i64 c = 0;
      if (column_step == 1)
        for (; c + W <= columns; c += W, from += W * W) {
          Vec<R> block[W];
          for (int i = 0; i < W; ++i) block[i] = load(from + i * W);
          transpose_block<R>(block);
          for (i64 t = 0; t < s.tasks; ++t)
            std::memcpy(to + t * task_stride + r * row_step + c, &block[t], sizeof block[t]);
        }
      for (; c < columns; ++c, from += W) {
        R* at = to + r * row_step + c * column_step;
        for (i64 t = 0; t < s.tasks; ++t) at[t * task_stride] = from[t];
      }
    }
  }
  // What a lane without a task has come to, from samples of 0, may be no number.
  static void add_to_shared(R* shared, const R* from, i64 rows, i64 columns, Slice s) {
    const i64 n = rows * columns;
    alignas(FASTMETA_VECTOR_BYTES) R some[W * W];
    const auto filled = active(s) > R(0);
    i64 i = 0;
    for (; i + W <= n; i += W) {
      const R* block = from + i * W;
      for (int l = 0; s.tasks < W && l < W; ++l)
        store(some + l * W, select(filled, load(block + l * W), Vec<R>{}));
      R sums[W];
      const Vec<R> v = horizontal_sums<R>(s.tasks < W ? some : block);
      std::memcpy(sums, &v, sizeof v);
      for (int l = 0; l < W; ++l) shared[i + l] += sums[l];
    }
    for (; i < n; ++i)
      shared[i] += horizontal_sum<R>(select(filled, load(from + i * W), Vec<R>{}));
  }
  static void spread(R* to, const R* shared, i64 rows, i64 columns) {
    for (i64 i = 0; i < rows * columns; ++i) store(to + i * W, splat(shared[i]));
  }
  static FASTMETA_INLINE Vec<R> shared_value(const R* shared, i64 v) { return splat(shared[v]); }

  static void transpose(R*, const R*, i64, i64) {}
};

}  // namespace fastmeta::FASTMETA_ISA
