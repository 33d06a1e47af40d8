// What one thread block does: a run of consecutive tasks, forward or backward, and the sums over
// runs. The same text runs on the host, one thread a CUDA thread (tests/csrc/test_cuda_blocks.cpp).
#pragma once

#include "team.cuh"
//
#include "../network/passes.h"
//
#include "../network/inner_loop.h"

namespace fastmeta::cuda {

template <class R>
using BlockPlan = Plan<Block<R>>;
template <class R>
using BlockAdaptation = Adaptation<BlockPlan<R>, Passes<Block<R>>>;

// One address a parameter, any of which may be missing; !given: all are.
template <class R>
struct Addresses {
  bool given;
  R* of[max_parameters];
  FASTMETA_INLINE R* const* pointers() const { return given ? of : nullptr; }
};

template <class R>
struct ForwardArguments {
  BlockPlan<R> plan;
  R* record;  // [T][steps][theta_size], or nullptr
  R* predictions;
  R* loss;
  Addresses<R> fast;
};

// sums: [runs][(1 + rate_steps) or 1][theta_size]
template <class R>
struct BackwardArguments {
  BlockPlan<R> plan;
  const R* record;
  const R* grad_loss;
  const R* grad_predictions;
  Addresses<const R> grad_fast;
  Addresses<R> parameters, rates;
  R* support_x;
  R* query_x;
  R* sums;
  i64 runs, run_size;
};

template <class R>
FASTMETA_INLINE i64 team_size(const BlockPlan<R>& plan) {
  return plan.loop.steps * plan.theta_size;
}

template <class R>
FASTMETA_CODE void forward_block(const ForwardArguments<R>& a, R* scratch) {
  const ForwardOut<R> out{a.record, a.predictions, a.loss, a.fast.pointers()};
  const Common<R> common{};
  for (i64 task = blockIdx.x; task < a.plan.loop.tasks; task += gridDim.x) {
    R* kept = a.record ? a.record + task * team_size(a.plan) : nullptr;
    BlockAdaptation<R>(a.plan, common, scratch, Crew{}).forward(task, out, kept);
  }
}

// Where the i-th of `parts` nearly equal pieces of n begins.
FASTMETA_INLINE i64 piece_begin(i64 n, i64 parts, i64 i) { return n * i / parts; }

template <class R>
FASTMETA_CODE void backward_block(const BackwardArguments<R>& a, R* scratch) {
  const BackwardIn<R> in{a.record, a.grad_loss, a.grad_predictions, a.grad_fast.pointers()};
  const BackwardOut<R> out{a.parameters.of, a.rates.pointers(), a.support_x, a.query_x};
  const Common<R> common{};
  const i64 tasks = a.plan.loop.tasks, run = blockIdx.x;
  R* mine = a.sums + run * a.run_size;
  Block<R>::zero(mine, a.run_size);
  const i64 end = piece_begin(tasks, a.runs, run + 1);
  for (i64 task = piece_begin(tasks, a.runs, run); task < end; ++task)
    BlockAdaptation<R>(a.plan, common, scratch, Crew{})
        .backward(task, in, a.record + task * team_size(a.plan), out,
                  {mine, mine + a.plan.theta_size});
}

// ---- sums over runs -------------------------------------------------------------------------------

constexpr int sum_columns = 32, sum_threads = 8 * sum_columns;

// Where element i of a run belongs in PyTorch's layout, or nullptr: padding, or not asked for.
template <class R>
FASTMETA_INLINE R* place_of(const BackwardArguments<R>& a, i64 i) {
  const i64 size = a.plan.theta_size, step = i / size - 1, at = i - (step + 1) * size;
  R* place = nullptr;
  a.plan.each_piece([&](const Piece& p) {
    const i64 ld = Block<R>::stride(p.columns), row = (at - p.at) / ld, column = at - p.at - row * ld;
    if (at < p.at || row >= p.rows || column >= p.columns) return;
    R* out = step < 0 ? (a.plan.per_task(p.parameter) ? nullptr : a.parameters.of[p.parameter])
                      : a.rates.of[p.parameter];
    if (!out) return;
    place = out + larger(step, 0) * p.elements() + row * p.row_step + column * p.column_step;
  });
  return place;
}

// A column is an element of a run: its threads, eight of them, add up every eighth run, then the first
// of them their sums. The order never changes.
template <class R>
FASTMETA_CODE void sum_block(const BackwardArguments<R>& a, R* scratch) {
  const int column = int(threadIdx.x) % sum_columns, row = int(threadIdx.x) / sum_columns;
  const int rows = int(blockDim.x) / sum_columns;
  const i64 i = i64(blockIdx.x) * sum_columns + column;
  R* place = i < a.run_size ? place_of(a, i) : nullptr;
  R sum = 0;
  if (place)
    for (i64 run = row; run < a.runs; run += rows) sum += a.sums[run * a.run_size + i];
  scratch[threadIdx.x] = sum;
  Block<R>::barrier();
  if (row > 0 || !place) return;
  for (int other = 1; other < rows; ++other) sum += scratch[other * sum_columns + column];
  *place = sum;
}

}  // namespace fastmeta::cuda
