// What a thread block does for a task, written down on the host: a list of operations on matrices in
// shared memory. Plain data. recorder.h writes it, run.cuh carries it out, print.h prints it for a compiler.
#pragma once

#include "../network/spec.h"

namespace fastmeta::cuda {

// As many as the parameters of a kernel have room for.
constexpr int max_nodes = 32, max_parameters = 32;

enum class Do : int {
  // between tensors and shared memory
  Gather, GatherLabels, Scatter, ScatterSubtract, ScatterAdd, ZeroTensor,
  Load, Keep,  // theta_k from and to the record, as it lies
  // in shared memory
  Zero, Copy, Add, PadColumn, TimesRates,
  // targets and loss
  Coefficients, ScaleCoefficients, Loss, PutLoss, LossGradient, LossRGradient,
  // products
  Forward, RForward, WeightGradient, InputGradient, RInputGradient,
  // activations that no product is in front of
  Activate, ActivationBackward, RActivate, RActivationBackward,
  // of a loss of the user's own
  OwnLoss, OwnLossGradient, OwnLossRGradient,
};

// What becomes of a weight gradient; c and from lie alike.
enum class Then : int {
  Store,     // c = acc
  Add,       // c = c + acc
  Subtract,  // c = c - acc
  Step,      // c = from - rate * acc
  RateGrad,  // c = c - from * acc, in the sums over tasks
};

// The tensors that operations name: a base address, and how far it is from a task to the next.
enum Slot : int {
  no_slot = -1,
  support_x, support_y, support_labels, support_weight,
  query_x, query_y, query_labels, query_weight,
  record, predictions, loss, grad_loss, grad_predictions, out_support_x, out_query_x,
  sums,  // of a block, not of a task
  first_parameter,
  first_rate = first_parameter + max_parameters,
  first_fast = first_rate + max_parameters,
  first_grad_fast = first_fast + max_parameters,
  first_out = first_grad_fast + max_parameters,
  n_slots = first_out + max_parameters,
};

// All places in shared memory are in elements from its beginning; a row is followed by the next one
// after `.._row` elements. Not every operation has every field.
struct alignas(16) Op {
  Do code;
  int meets;          // the block's threads, after it
  int rows, columns;  // of what is written

  int to, to_row;
  int from, from_row;

  // products: rows x columns sums over depth, of one pair of operands or two
  int a[2], b[2];
  int a_row, b_row, depth;
  int terms;  // of Coefficients: whether losses are summed; of own losses: whether targets are labels
  int tile_rows, across, tiles, activation;  // tiles of tile_rows x 4, `across` side by side; a node
  unsigned across_inverse;                   // 2^32 / across, rounded up; 0 for 1
  int bias;        // Forward: the row that sums begin with, or -1
  int s1, s2;      // what an activation keeps beside its value
  int value, value_row;
  int r_to, rz;    // derivatives: what is written second, and that of the activation's input

  int pad;         // what follows the last column: 1 of values, which a bias multiplies; 0 of derivatives
  int bias_row;    // WeightGradient: the row that sums over samples alone, or -1
  Then then;

  int slot, bias_slot;          // of rates, or of the tensor
  i64 offset, bias_offset;      // in the tensor
  i64 row_step, column_step;    // in the tensor
};

template <class R>
struct Tensor {
  R* base;
  i64 task_stride;
};

// A parameter in theta, for the sums over tasks.
struct Part {
  int slot, rates_slot;
  i64 at, rows, columns, row, row_step, column_step, elements;
};

// What all operations of a program know.
struct Known {
  int n_nodes;
  LossKind loss;
  Node nodes[max_nodes];
  int targets_at, target_row, coefficient_at, curvature_at, loss_at;
  int own_at, own_row;  // the rows of an own loss, from sample to sample
};

// What a kernel is given.
template <class R>
struct Run {
  const Op* ops;
  int n_ops, n_once;  // the first ones are for the block, not for every task
  Known known;
  RowProgram own_loss;  // on the device
  i64 tasks, runs, run_size;
  Tensor<R> tensors[n_slots];
};

// Of a block that adds up the runs.
constexpr int sum_columns = 32, most_sum_threads = 32 * sum_columns;

// What the sums over tasks are given.
template <class R>
struct SumOver {
  const R* sums;  // [runs][1 + rate_steps or 1][theta_size]
  i64 runs, run_size, theta_size;
  int n_parts;
  Part parts[max_parameters];
  R* out[max_parameters];    // by part, or nullptr
  R* rates[max_parameters];  // likewise
};

}  // namespace fastmeta::cuda
