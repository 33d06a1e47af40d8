// Carries out a program: what the threads of a block do, task after task. The same text runs on the
// host, one thread a CUDA thread (tests/csrc/test_cuda_blocks.cpp).
#pragma once

#include "run_own_loss.cuh"
#include "run_tiles.cuh"

namespace fastmeta::cuda {

// An operation of a kind; of products, by tiles of so many rows.
template <Do code, int tile_rows = 1, class R>
FASTMETA_INLINE void carry_out(const Here<R>& here, const Op& op) {
  if constexpr (code == Do::Gather) {
    gather(here, op);
  } else if constexpr (code == Do::GatherLabels) {
    gather_labels(here, op);
  } else if constexpr (code == Do::Scatter) {
    scatter(here, op, [](R& to, R from) { to = from; });
  } else if constexpr (code == Do::ScatterSubtract) {
    scatter_subtract(here, op);
  } else if constexpr (code == Do::ScatterAdd) {
    scatter(here, op, [](R& to, R from) { to += from; });
  } else if constexpr (code == Do::ZeroTensor) {
    if (!here.has(op.slot)) return;
    R* to = here.tensor(op.slot, op.offset);
    for (i64 i = threadIdx.x; i < op.row_step; i += blockDim.x) to[i] = 0;
  } else if constexpr (code == Do::Load) {
    move(here.at(op.to), here.tensor(op.slot, op.offset), op.columns);
  } else if constexpr (code == Do::Keep) {
    if (here.has(op.slot)) move(here.tensor(op.slot, op.offset), here.at(op.from), op.columns);
  } else if constexpr (code == Do::Zero) {
    each(op.columns, [&](int i) { here.at(op.to)[i] = 0; });
  } else if constexpr (code == Do::Copy) {
    each(op.columns, [&](int i) { here.at(op.to)[i] = here.at(op.from)[i]; });
  } else if constexpr (code == Do::Add) {
    each(op.columns, [&](int i) { here.at(op.to)[i] += here.at(op.from)[i]; });
  } else if constexpr (code == Do::PadColumn) {
    each(op.rows, [&](int s) { here.at(op.to)[s * op.to_row] = R(op.pad); });
  } else if constexpr (code == Do::TimesRates) {
    times_rates(here, op);
  } else if constexpr (code == Do::Coefficients) {
    put_coefficients(here, op);
  } else if constexpr (code == Do::ScaleCoefficients) {
    const R factor = *here.tensor(op.slot, 0);
    each(op.rows, [&](int s) { here.at(op.to)[s] *= factor; });
  } else if constexpr (code == Do::Loss) {
    add_losses(here, op);
  } else if constexpr (code == Do::PutLoss) {
    if (threadIdx.x == 0 && here.has(op.slot))
      *here.tensor(op.slot, 0) = *here.at(here.known().loss_at);
  } else if constexpr (code == Do::LossGradient) {
    loss_gradient(here, op);
  } else if constexpr (code == Do::LossRGradient) {
    loss_r_gradient(here, op);
  } else if constexpr (code == Do::OwnLoss) {
    add_own_losses(here, op);
  } else if constexpr (code == Do::OwnLossGradient) {
    own_loss_gradient(here, op);
  } else if constexpr (code == Do::OwnLossRGradient) {
    own_loss_r_gradient(here, op);
  } else if constexpr (code == Do::Forward || code == Do::RForward) {
    forward_tiles<tile_rows>(here, op);
  } else if constexpr (code == Do::WeightGradient) {
    weight_gradient_tiles<tile_rows>(here, op);
  } else if constexpr (code == Do::InputGradient) {
    input_gradient_tiles<tile_rows>(here, op);
  } else if constexpr (code == Do::RInputGradient) {
    r_input_gradient_tiles<tile_rows>(here, op);
  } else {
    activation_alone(here, op);
  }
}

template <Do code, class R>
FASTMETA_INLINE void by_tiles(const Here<R>& here, const Op& op) {
  if (op.tile_rows == 4)
    carry_out<code, 4>(here, op);
  else if (op.tile_rows == 2)
    carry_out<code, 2>(here, op);
  else
    carry_out<code, 1>(here, op);
}

// Own losses have a kernel of their own: their code is large.
template <bool own_losses, class R>
FASTMETA_INLINE void interpret(const Here<R>& here, const Op& op) {
  switch (op.code) {
    case Do::OwnLoss:
      if constexpr (own_losses) carry_out<Do::OwnLoss>(here, op);
      return;
    case Do::OwnLossGradient:
      if constexpr (own_losses) carry_out<Do::OwnLossGradient>(here, op);
      return;
    case Do::OwnLossRGradient:
      if constexpr (own_losses) carry_out<Do::OwnLossRGradient>(here, op);
      return;
    case Do::Gather:
      return carry_out<Do::Gather>(here, op);
    case Do::GatherLabels:
      return carry_out<Do::GatherLabels>(here, op);
    case Do::Scatter:
      return carry_out<Do::Scatter>(here, op);
    case Do::ScatterSubtract:
      return carry_out<Do::ScatterSubtract>(here, op);
    case Do::ScatterAdd:
      return carry_out<Do::ScatterAdd>(here, op);
    case Do::ZeroTensor:
      return carry_out<Do::ZeroTensor>(here, op);
    case Do::Load:
      return carry_out<Do::Load>(here, op);
    case Do::Keep:
      return carry_out<Do::Keep>(here, op);
    case Do::Zero:
      return carry_out<Do::Zero>(here, op);
    case Do::Copy:
      return carry_out<Do::Copy>(here, op);
    case Do::Add:
      return carry_out<Do::Add>(here, op);
    case Do::PadColumn:
      return carry_out<Do::PadColumn>(here, op);
    case Do::TimesRates:
      return carry_out<Do::TimesRates>(here, op);
    case Do::Coefficients:
      return carry_out<Do::Coefficients>(here, op);
    case Do::ScaleCoefficients:
      return carry_out<Do::ScaleCoefficients>(here, op);
    case Do::Loss:
      return carry_out<Do::Loss>(here, op);
    case Do::PutLoss:
      return carry_out<Do::PutLoss>(here, op);
    case Do::LossGradient:
      return carry_out<Do::LossGradient>(here, op);
    case Do::LossRGradient:
      return carry_out<Do::LossRGradient>(here, op);
    case Do::Forward:
    case Do::RForward:
      return by_tiles<Do::Forward>(here, op);
    case Do::WeightGradient:
      return by_tiles<Do::WeightGradient>(here, op);
    case Do::InputGradient:
      return by_tiles<Do::InputGradient>(here, op);
    case Do::RInputGradient:
      if (op.tile_rows == 2) return carry_out<Do::RInputGradient, 2>(here, op);
      return carry_out<Do::RInputGradient, 1>(here, op);
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

// A block has a run of consecutive tasks; perform(here, i): the i-th operation, and its barrier.
template <class R, class F>
FASTMETA_INLINE void run_tasks(const Run<R>& run, R* shared, F perform) {
  Here<R> here{run, shared, 0, i64(blockIdx.x)};
  if (here.has(sums)) {
    R* mine = here.tensor(sums, 0);
#pragma unroll 1
    for (i64 i = threadIdx.x; i < run.run_size; i += blockDim.x) mine[i] = 0;
  }
  const i64 end = piece_of(run.tasks, run.runs, here.block + 1);
  int begin = 0;  // the first task does what is for the block too
  for (here.task = piece_of(run.tasks, run.runs, here.block); here.task < end; ++here.task) {
#pragma unroll 1
    for (int i = begin; i < run.n_ops; ++i) perform(here, i);
    begin = run.n_once;
  }
}

template <bool own_losses, class R>
FASTMETA_INLINE void run_block(const Run<R>& run, R* shared) {
  touch(run.ops, run.n_ops);
  run_tasks(run, shared, [](const Here<R>& here, int i) {
    const Op& op = here.run.ops[i];
    interpret<own_losses>(here, op);
    if (op.meets) __syncthreads();
  });
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
