// What a block of a cluster does: a run of consecutive tasks, forward or backward, and the sums over
// runs. A block that has a task to itself carries out a program instead (run.cuh). The same text runs on the host, one thread a CUDA thread
// (tests/csrc/test_cuda_blocks.cpp).
#pragma once

#include "cluster.cuh"
//
#include "../network/passes.h"
//
#include "../network/inner_loop.h"

namespace fastmeta::cuda {

template <class Team>
using TeamAdaptation = Adaptation<Plan<Team>, Passes<Team>>;

// One address a parameter, any of which may be missing; !given: all are.
template <class R>
struct Addresses {
  bool given;
  R* of[max_parameters];
  FASTMETA_INLINE R* const* pointers() const { return given ? of : nullptr; }
};

template <class Team, class R = typename Team::Real>
struct ForwardArguments {
  Plan<Team> plan;
  R* record;  // [T][blocks][steps][theta_size], or nullptr
  R* predictions;
  R* loss;
  Addresses<R> fast;
};

// sums: [runs][blocks][(1 + rate_steps) or 1][theta_size]
template <class Team, class R = typename Team::Real>
struct BackwardArguments {
  Plan<Team> plan;
  const R* record;
  const R* grad_loss;
  const R* grad_predictions;
  Addresses<const R> grad_fast;
  Addresses<R> parameters, rates;
  R* support_x;
  R* query_x;
  R* sums;
  i64 runs, run_size;  // run_size: of one block
};

// The record of a task, as far as this block keeps it.
template <class Team, class R>
FASTMETA_INLINE R* kept(const Plan<Team>& plan, R* record, i64 task) {
  return record + (task * plan.blocks + Team::rank()) * plan.loop.steps * plan.theta_size;
}

template <class Team, class R>
FASTMETA_CODE void forward_block(const ForwardArguments<Team>& a, R* scratch) {
  const ForwardOut<R> out{a.record, a.predictions, a.loss, a.fast.pointers()};
  const Common<R> common{};
  const unsigned blocks = unsigned(a.plan.blocks);
  const i64 first = blockIdx.x / blocks, step = gridDim.x / blocks;
  for (i64 task = first; task < a.plan.loop.tasks; task += step)
    TeamAdaptation<Team>(a.plan, common, scratch, Crew{})
        .forward(task, out, a.record ? kept(a.plan, a.record, task) : nullptr);
  Team::leave();
}

// Where the i-th of `parts` nearly equal pieces of n begins.
FASTMETA_INLINE i64 piece_begin(i64 n, i64 parts, i64 i) { return n * i / parts; }

template <class Team, class R>
FASTMETA_CODE void backward_block(const BackwardArguments<Team>& a, R* scratch) {
  const BackwardIn<R> in{a.record, a.grad_loss, a.grad_predictions, a.grad_fast.pointers()};
  const BackwardOut<R> out{a.parameters.of, a.rates.pointers(), a.support_x, a.query_x};
  const Common<R> common{};
  const i64 tasks = a.plan.loop.tasks, run = blockIdx.x / unsigned(a.plan.blocks);
  R* mine = a.sums + blockIdx.x * a.run_size;
  Team::zero(mine, a.run_size);
  const i64 end = piece_begin(tasks, a.runs, run + 1);
  for (i64 task = piece_begin(tasks, a.runs, run); task < end; ++task)
    TeamAdaptation<Team>(a.plan, common, scratch, Crew{})
        .backward(task, in, kept(a.plan, a.record, task), out, {mine, mine + a.plan.theta_size});
  Team::leave();
}

// ---- sums over runs -------------------------------------------------------------------------------

constexpr int sum_threads = 8 * sum_columns;

// Where element i of the sums of a block belongs in PyTorch's layout, or nullptr: padding, or not
// asked for.
template <class Team, class R = typename Team::Real>
FASTMETA_INLINE R* place_of(const BackwardArguments<Team>& a, i64 i, i64 rank) {
  const Plan<Team>& plan = a.plan;
  const i64 size = plan.theta_size, step = i / size - 1, at = i - (step + 1) * size;
  R* place = nullptr;
  for (int n = 0; n < plan.n_pieces; ++n) {
    const Piece& p = plan.pieces[n];
    const i64 ld = Team::stride(p.columns), row = (at - p.at) / ld, column = at - p.at - row * ld;
    if (at < p.at || row >= plan.held(p.rows, rank) || column >= p.columns) continue;
    R* out = step < 0 ? (plan.per_task(p.parameter) ? nullptr : a.parameters.of[p.parameter])
                      : a.rates.of[p.parameter];
    if (!out) continue;
    place = out + larger(step, 0) * p.elements() + (plan.first(p.rows, rank) + row) * p.row_step +
            column * p.column_step;
  }
  return place;
}

// A column is an element of a run: its threads, eight of them, add up every eighth run, then the first
// of them their sums. The order never changes.
template <class Team, class R>
FASTMETA_CODE void sum_block(const BackwardArguments<Team>& a, R* scratch) {
  const int column = int(threadIdx.x) % sum_columns, row = int(threadIdx.x) / sum_columns;
  const int rows = int(blockDim.x) / sum_columns;
  const i64 i = i64(blockIdx.x) * sum_columns + column, size = a.plan.blocks * a.run_size;
  const i64 rank = i / a.run_size;
  R* place = i < size ? place_of(a, i - rank * a.run_size, rank) : nullptr;
  R sum = 0;
  if (place)
    for (i64 run = row; run < a.runs; run += rows) sum += a.sums[run * size + i];
  scratch[threadIdx.x] = sum;
  Team::barrier();
  if (row > 0 || !place) return;
  for (int other = 1; other < rows; ++other) sum += scratch[other * sum_columns + column];
  *place = sum;
}

}  // namespace fastmeta::cuda
