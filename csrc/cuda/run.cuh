// Carries out a program: what the threads of a block do, task after task. The same text runs on the
// host, one thread a CUDA thread (tests/csrc/test_cuda_blocks.cpp).
#pragma once

#include "run_loss.cuh"
#include "run_tiles.cuh"

namespace fastmeta::cuda {

template <class R>
FASTMETA_INLINE void carry_out(const Here<R>& here, const Op& op) {
  switch (op.code) {
    case Do::Gather:
      return gather(here, op);
    case Do::GatherLabels:
      return gather_labels(here, op);
    case Do::Scatter:
      return scatter(here, op, [](R& to, R from) { to = from; });
    case Do::ScatterSubtract:
      return scatter_subtract(here, op);
    case Do::ScatterAdd:
      return scatter(here, op, [](R& to, R from) { to += from; });
    case Do::ZeroTensor: {
      if (!here.has(op.slot)) return;
      R* to = here.tensor(op.slot, op.offset);
      for (i64 i = threadIdx.x; i < op.row_step; i += blockDim.x) to[i] = 0;
      return;
    }
    case Do::Load:
      return move(here.at(op.to), here.tensor(op.slot, op.offset), op.columns);
    case Do::Keep:
      if (here.has(op.slot)) move(here.tensor(op.slot, op.offset), here.at(op.from), op.columns);
      return;
    case Do::Zero:
      return each(op.columns, [&](int i) { here.at(op.to)[i] = 0; });
    case Do::Copy:
      return each(op.columns, [&](int i) { here.at(op.to)[i] = here.at(op.from)[i]; });
    case Do::Add:
      return each(op.columns, [&](int i) { here.at(op.to)[i] += here.at(op.from)[i]; });
    case Do::PadColumn:
      return each(op.rows, [&](int s) { here.at(op.to)[s * op.to_row] = R(op.pad); });
    case Do::TimesRates:
      return times_rates(here, op);
    case Do::Coefficients:
      return put_coefficients(here, op);
    case Do::ScaleCoefficients: {
      const R factor = *here.tensor(op.slot, 0);
      return each(op.rows, [&](int s) { here.at(op.to)[s] *= factor; });
    }
    case Do::Loss:
      return add_losses(here, op);
    case Do::PutLoss:
      if (threadIdx.x == 0 && here.has(op.slot))
        *here.tensor(op.slot, 0) = *here.at(here.run.loss_at);
      return;
    case Do::LossGradient:
      return loss_gradient(here, op);
    case Do::LossRGradient:
      return loss_r_gradient(here, op);
    case Do::Forward:
    case Do::RForward:
      return by_tile<R>(op, [&](auto rows) { forward_tiles<rows.value>(here, op); });
    case Do::WeightGradient:
      return by_tile<R>(op, [&](auto rows) { weight_gradient_tiles<rows.value>(here, op); });
    case Do::InputGradient:
      return by_tile<R>(op, [&](auto rows) { input_gradient_tiles<rows.value>(here, op); });
    case Do::RInputGradient:
      if (op.tile_rows == 2) return r_input_gradient_tiles<2>(here, op);
      return r_input_gradient_tiles<1>(here, op);
    case Do::Activate:
    case Do::ActivationBackward:
    case Do::RActivate:
    case Do::RActivationBackward:
      return activation_alone(here, op);
  }
}

// Where the i-th of `parts` nearly equal pieces of n begins.
FASTMETA_INLINE i64 piece_of(i64 n, i64 parts, i64 i) { return n * i / parts; }

// Brings a program into the first-level cache, all of it at once instead of a line at a time.
FASTMETA_INLINE void touch([[maybe_unused]] const Op* ops, [[maybe_unused]] int n) {
#ifdef __CUDA_ARCH__
  const char* line = reinterpret_cast<const char*>(ops);
  each(int(n * sizeof(Op) / 128), [&](int i) {
    [[maybe_unused]] int word;
    asm volatile("ld.global.ca.u32 %0, [%1];" : "=r"(word) : "l"(line + 128 * i));
  });
#endif
}

// A block has a run of consecutive tasks.
template <class R>
FASTMETA_INLINE void run_block(const Run<R>& run, R* shared) {
  Here<R> here{run, shared, 0, i64(blockIdx.x)};
  if (here.has(sums)) {
    R* mine = here.tensor(sums, 0);
#pragma unroll 1
    for (i64 i = threadIdx.x; i < run.run_size; i += blockDim.x) mine[i] = 0;
  }
  touch(run.ops, run.n_ops);
  const i64 end = piece_of(run.tasks, run.runs, here.block + 1);
  int begin = 0;  // the first task does what is for the block too
  for (here.task = piece_of(run.tasks, run.runs, here.block); here.task < end; ++here.task) {
#pragma unroll 1
    for (int i = begin; i < run.n_ops; ++i) {
      const Op& op = run.ops[i];
      carry_out(here, op);
      if (op.meets) __syncthreads();
    }
    begin = run.n_once;
  }
}

// ---- sums over runs -------------------------------------------------------------------------------

// blockIdx.x: 32 elements of theta; blockIdx.y: the parameters, or the rates of a step. A column of
// threads adds up every n-th run, then the first of them their sums. The order never changes.
template <class R>
FASTMETA_INLINE void sum_block(const SumOver<R>& a, R* shared) {
  const int column = int(threadIdx.x) % sum_columns, row = int(threadIdx.x) / sum_columns;
  const int rows = int(blockDim.x) / sum_columns;
  const i64 at = i64(blockIdx.x) * sum_columns + column, step = i64(blockIdx.y) - 1;
  R* place = nullptr;
  for (int n = 0; n < a.n_parts; ++n) {
    const Part& p = a.parts[n];
    const i64 inside = at - p.at;
    if (inside < 0 || inside >= p.rows * p.row) continue;
    const unsigned r = unsigned(inside) / unsigned(p.row), c = unsigned(inside) - r * unsigned(p.row);
    R* out = step < 0 ? a.out[n] : a.rates[n];
    if (c < p.columns && out)
      place = out + larger(step, 0) * p.elements + r * p.row_step + c * p.column_step;
  }
  R sum = 0;
  const R* mine = a.sums + (step + 1) * a.theta_size + at;
  if (place)
    for (i64 run = row; run < a.runs; run += rows) sum += mine[run * a.run_size];
  shared[threadIdx.x] = sum;
  __syncthreads();
  if (row > 0 || !place) return;
  for (int other = 1; other < rows; ++other) sum += shared[other * sum_columns + column];
  *place = sum;
}

}  // namespace fastmeta::cuda
