// Where everything lies: parameters in team layout, and the scratch of one team.
#pragma once

#include "loss_room.h"
#include "parameters.h"

namespace fastmeta::FASTMETA_ISA {

// What scratch is for. A team that is short of it takes some rows of the samples at a time, and lays
// out one half of the work: the call that adapts, or the one that differentiates.
struct Room {
  i64 rows = -1;  // all
  bool adapts = true, differentiates = true, r_pass = true;
  bool keeps_lambda = false;  // lambda_{k+1} while lambda_k forms
  int blocks = 1;             // that share a task
  bool keeps_values = false;  // of the samples, whatever that saves: they stay in the cache
};

constexpr i64 dual_sums = 3;  // rows behind the samples': see dual.h

// Whether the lanes of a weight run along its inputs, as PyTorch has it, [O][I]: fewer outputs than a vector
// has lanes would leave lanes without work. Inputs that are whole vectors have no lanes to be kept at 0; of
// few of them, folding the sums takes longer than the lanes gain (20-64-64-6: 8 % slower) unless most lanes
// would be idle (256-64-64-1 with 16 lanes: 6 % faster).
template <class Team>
bool runs_along_inputs(const Node& node) {
  if (!Team::has_lanes_along_inputs || node.kind != NodeKind::Linear) return false;
  if (node.out >= Team::W || node.in % Team::W != 0) return false;
  return node.in >= 32 * Team::W || 8 * node.out <= Team::W;
}

// Multiply-adds of the first layer, a linear one, in either form, but for those of the query that both
// have; to turn a sample's number into a column takes as long as four.
template <class Team>
struct InputWork {
  i64 plain, dual;

  template <class R>
  explicit InputWork(const InnerLoop<R>& loop) {
    const Node& node = loop.network.nodes[0];
    const i64 S = loop.support.n, Q = loop.query.n, K = loop.steps;
    const i64 I = node.in, O = Team::stride(node.out), product = S * I * O;
    const i64 plain_product = runs_along_inputs<Team>(node) ? S * I * node.out : product;
    const bool second = loop.order == 2;
    plain = (second ? 4 : 2) * K * plain_product;
    dual = 2 * product + (S + 1) * (round_up(S, Team::W) + round_up(Q, Team::W)) * I +
           4 * (S + Q) * I + K * (S + dual_sums) * O * (second ? 2 * S + Q : S);
  }
  // With 0.9 of the multiply-adds the dual form took as long as the other, with 0.8 less
  // (docs/notes/cpu-kernels.md).
  bool dual_pays() const { return 5 * dual < 4 * plain; }
};

// Whether the first layer has it, given that one number is the rate. The rows of C have to fit where I rows
// are; of one or two samples, rounding was up to three times what it is of the weights.
template <class Team, class R>
bool takes_dual_form(const InnerLoop<R>& loop) {
  const Network& network = loop.network;
  if (!loop.weights_stay || !loop.query.n || network.nodes[0].kind != NodeKind::Linear) return false;
  if (loop.support.n < 3 || loop.support.n + dual_sums > network.nodes[0].in) return false;
  for (int p = 0; p < network.n_parameters; ++p)
    if (loop.parameters[p].task_stride || !loop.rates[p].data) return false;
  return InputWork<Team>(loop).dual_pays();
}

template <class Team_>
struct Plan : Parameters<Team_> {
  using Team = Team_;
  using R = typename Team::Real;
  using Base = Parameters<Team>;
  using Base::loop, Base::has_rate, Base::theta_size, Base::shared_size, Base::dual_size;
  static constexpr bool has_dual_form = Team::has_dual_form;

  int n_nodes;
  // A Linear's parameters are a matrix [I + bias][O]: the weight transposed, the bias its last row. Along
  // inputs they are a matrix [O][I], and the bias a row [O] behind it.
  i64 theta_at[Team::max_nodes], shared_at[Team::max_nodes];
  bool along_inputs[Team::max_nodes];
  bool weight_adapts[Team::max_nodes], bias_adapts[Team::max_nodes];
  int lowest_adapted;   // the first node with a parameter that adapts; n_nodes if there is none
  int first_linear, last_linear;  // n_nodes and -1 if there is none

  // A product reads a task's own rows where they lie; every other reader wants team layout.
  i64 part;  // rows taken at once, at most
  bool copies_input;
  i64 x_at, y_at, coefficient_at, program_at;
  // Values of one set of samples, what forward computes: [values_row][rows], by node.
  i64 value_at[Team::max_nodes], s1_at[Team::max_nodes], s2_at[Team::max_nodes];  // in values_row
  i64 values_row = 0;
  // Behind those of the support, for a backward that follows at once: the gradients of its loss for what
  // each node gives, in values_row too. An activation's and its input's share a place if it is not curved.
  i64 gradient_at[Team::max_nodes], gradients_row = 0;
  i64 support_size = 0, query_size = 0;  // kept from forward to backward: all values, or nothing

  i64 values_at, r_at[Team::max_nodes];
  i64 g_at[2], rg_at[2], curvature_at, transposed_at[2];
  i64 top_at, r_top_at;  // a block's part of the last product and of its derivative
  i64 theta_work_at[2], lambda_at, lambda_before_at, direction_at, support_gradient_at;
  // Of the dual form; 0 without one, where offsets are taken all the same.
  i64 center_at = 0, gram_at = 0, dual_output_at = 0, dual_lambda_at = 0, dual_columns_at = 0;
  i64 dense_at = 0;
  i64 scratch_size = 0;
  static constexpr i64 worker_size = 0;  // nothing a worker
  static constexpr bool splits = false;  // a parameter's gradient into several products

  explicit Plan(const InnerLoop<R>& l, Room room = {})
      : Base(l, room.blocks), n_nodes(l.network.n_nodes) {
    lay_out_parameters();
    lay_out_values(room);
    lay_out_scratch(room);
  }

  // For a forward and a backward that follow each other at once.
  static Plan keeping(const InnerLoop<R>& l) { return Plan(l, all_values()); }

  FASTMETA_BOTH const Node& node(int l) const { return loop.network.nodes[l]; }
  FASTMETA_BOTH bool linear(int l) const { return node(l).kind == NodeKind::Linear; }
  FASTMETA_BOTH i64 in(int l) const { return node(l).in; }
  FASTMETA_BOTH i64 out(int l) const { return node(l).out; }
  FASTMETA_BOTH i64 outputs() const { return out(n_nodes - 1); }
  FASTMETA_BOTH bool adapts(int l) const { return weight_adapts[l] || bias_adapts[l]; }
  // Of a Linear's weight in team layout.
  FASTMETA_BOTH bool along(int l) const { return Team::has_lanes_along_inputs && along_inputs[l]; }
  FASTMETA_BOTH i64 weight_rows(int l) const { return along(l) ? out(l) : this->share(in(l)); }
  FASTMETA_BOTH i64 weight_columns(int l) const { return along(l) ? in(l) : out(l); }
  // In team layout, of one task's inputs.
  FASTMETA_BOTH i64 input_size(const Samples<R>& samples) const {
    return samples.n * Team::stride(in(0));
  }
  FASTMETA_BOTH i64 sample_size() const { return in(0); }
  i64 gram_ld() const {
    return round_up(loop.support.n, Team::W) + round_up(loop.query.n, Team::W);
  }

  // Of a node's input a block of a cluster needs the columns that meet its rows of the weights.
  // Below the first product nothing else is laid out; above it, sums over k come in all columns;
  // above the last one, every block goes on with all.
  FASTMETA_BOTH bool narrow(int l) const { return Team::shares && l <= first_linear; }
  FASTMETA_BOTH bool whole(int l) const { return !Team::shares || l > last_linear; }
  FASTMETA_BOTH i64 laid_in(int l) const { return narrow(l) ? this->share(in(l)) : in(l); }
  FASTMETA_BOTH i64 laid_out(int l) const { return linear(l) ? out(l) : laid_in(l); }
  FASTMETA_CODE i64 in_row(int l) const {
    return Team::stride(narrow(l) ? this->held(in(l)) : in(l));
  }
  FASTMETA_CODE i64 in_first(int l) const {
    return narrow(l) || whole(l) ? 0 : this->first(in(l));
  }
  FASTMETA_CODE i64 in_columns(int l) const { return whole(l) ? in(l) : this->held(in(l)); }

 protected:
  static Room all_values() {
    Room room;
    room.keeps_values = Team::keeps_values;
    return room;
  }

  i64 take(i64 scalars) {
    const i64 at = scratch_size;
    scratch_size += round_up(scalars, 64 / i64(sizeof(R)));
    return at;
  }

 private:
  void lay_out_parameters() {
    lowest_adapted = first_linear = n_nodes, last_linear = -1;
    for (int l = n_nodes - 1; l >= 0; --l) {
      if (linear(l)) first_linear = l, last_linear = larger(last_linear, l);
      weight_adapts[l] = linear(l) && has_rate(node(l).weight);
      bias_adapts[l] = linear(l) && has_rate(node(l).bias);
      if (adapts(l)) lowest_adapted = l;
    }
    bool dual = false;
    if constexpr (has_dual_form) dual = this->one_rate && takes_dual_form<Team>(loop);
    for (int l = 0; l < n_nodes; ++l) {
      theta_at[l] = theta_size;
      shared_at[l] = shared_size;
      along_inputs[l] = runs_along_inputs<Team>(node(l)) && !(dual && l == 0);
      if (!linear(l)) continue;
      if (along(l))
        this->add({node(l).weight, 0, 0, 1, out(l), in(l), 0, in(l), 1});
      else
        this->add({node(l).weight, 0, 0, 1, in(l), out(l), 0, 1, in(l)});
      if (node(l).bias >= 0) this->add_row(node(l).bias, out(l));
      this->end_layer();
    }
    if (dual) dual_size = n_nodes > 1 ? theta_at[1] : theta_size;
  }

  // Where lanes run along the inputs, rows of samples are read as vectors.
  bool misaligned(const Samples<R>& samples) const {
    return along(0) && reinterpret_cast<std::uintptr_t>(samples.x) % (sizeof(R) * Team::W) != 0;
  }

  void lay_out_values(const Room& room) {
    const auto columns = [&](i64 n) {
      const i64 at = values_row;
      values_row += Team::stride(n);
      return at;
    };
    for (int l = 0; l < n_nodes; ++l) {
      if (linear(l)) {
        value_at[l] = columns(out(l));
        continue;
      }
      with_activation<R>(node(l), [&](auto f) {
        // A product's result is not needed once it is activated; that of an activation is, by its
        // derivatives.
        value_at[l] = l > 0 && linear(l - 1) ? value_at[l - 1] : columns(laid_in(l));
        s1_at[l] = f.keeps_s1 ? columns(laid_in(l)) : 0;
        s2_at[l] = f.keeps_s2 ? columns(laid_in(l)) : 0;
      });
    }
    if (!room.keeps_values && !(worth_keeping() && affordable())) return;
    const bool passed_on = last_linear > lowest_adapted;  // through a product, which they save
    if (room.keeps_values && loop.order == 2 && passed_on) lay_out_gradients();
    support_size = loop.order == 2 ? loop.support.n * (values_row + gradients_row) : 0;
    query_size = loop.query.n * values_row;
    if (room.keeps_values) this->kept_steps = steps_in_cache();
  }

  void lay_out_gradients() {
    for (int l = 0; l < n_nodes; ++l) {
      bool in_place = false;
      if (l > 0 && !linear(l)) with_activation<R>(node(l), [&](auto f) { in_place = !f.curved; });
      gradient_at[l] = in_place ? gradient_at[l - 1] : gradients_row;
      if (!in_place) gradients_row += Team::stride(out(l));
    }
  }

  // Values are written to memory and read back, or computed again. Of a 1-40-40-1 network computing
  // again is cheaper, of 20-64-64-6 with tanh and of 256-64-64-1 it is not (docs/notes/cpu-kernels.md).
  bool worth_keeping() const {
    if (!Team::keeps_values || !values_row) return false;
    constexpr i64 curved = 60;  // flops of a product that take as long as one element of tanh
    i64 flops = 0;
    for (int l = 0; l < n_nodes; ++l) {
      if (linear(l))
        flops += 2 * in(l) * out(l);
      else
        with_activation<R>(node(l), [&](auto f) { flops += f.curved ? curved * out(l) : 0; });
    }
    return flops * Team::tasks > 80 * values_row;
  }

  // Beside the theta_k, in the second-level cache, from a forward to the backward that follows at once.
  i64 steps_in_cache() const {
    constexpr i64 cache = i64(256) << 10;  // 512 KiB gained nothing more
    const i64 bytes = larger(1, support_size * i64(sizeof(R)));
    return larger(1, smaller(loop.steps, cache / bytes));
  }

  // Of all tasks together: many samples of many tasks shall not take what theta_k does not.
  bool affordable() const {
    const i64 bytes = (loop.support.n + loop.query.n) * values_row * i64(sizeof(R));
    return bytes <= most_kept / larger(1, this->teams());
  }

  void lay_out_scratch(const Room& room) {
    const i64 all = larger(loop.support.n, loop.query.n), rows = room.rows > 0 ? room.rows : all;
    part = rows;
    const auto matrix = [&](i64 columns) { return take(rows * Team::stride(columns)); };
    i64 widest = 0, widest_transposed = 0;
    copies_input = Team::splits || Team::tasks > 1 || !linear(0) || misaligned(loop.support) ||
                   misaligned(loop.query);
    x_at = copies_input ? matrix(laid_in(0)) : 0;
    y_at = matrix(larger(outputs(), targets_of<Team>(loop.network, outputs())));
    program_at = take(loss_scratch<Team>(loop.network, rows));
    coefficient_at = take(rows * Team::W);
    values_at = take(rows * values_row);
    for (int l = 0; l < n_nodes; ++l) {
      widest = larger(widest, larger(laid_in(l), laid_out(l)));
      if (linear(l)) {
        r_at[l] = room.r_pass ? matrix(out(l)) : 0;
        widest_transposed = larger(widest_transposed, out(l) * Team::stride(in(l)));
        continue;
      }
      with_activation<R>(node(l), [&](auto f) {
        // A curved activation still needs its input's derivative when its own is there.
        r_at[l] = !room.r_pass ? 0 : l > 0 && !f.curved ? r_at[l - 1] : matrix(laid_in(l));
      });
    }
    for (int i = 0; i < 2; ++i) {
      g_at[i] = matrix(widest);
      rg_at[i] = room.differentiates ? matrix(widest) : 0;
      theta_work_at[i] = i == 0 || room.adapts ? take(theta_size) : 0;
      transposed_at[i] = Team::transposes ? take(widest_transposed) : 0;
    }
    curvature_at = matrix(outputs());
    top_at = Team::shares ? matrix(outputs()) : 0;
    r_top_at = Team::shares && room.r_pass ? matrix(outputs()) : 0;
    lambda_at = room.differentiates ? take(theta_size) : 0;
    lambda_before_at = room.keeps_lambda ? take(theta_size) : lambda_at;
    const bool replaces = Team::shared_layout && this->one_rate;  // lambda, in place
    direction_at = room.differentiates && !replaces ? take(theta_size) : 0;
    const bool buffers = room.differentiates && !Team::sums_in_output;
    support_gradient_at = buffers ? take(loop.support.n * Team::stride(in(0))) : 0;
    if (dual_size) lay_out_dual();
  }

  void lay_out_dual() {
    const i64 samples = (loop.support.n + loop.query.n) * Team::stride(out(0));
    center_at = take(in(0));
    gram_at = take((loop.support.n + 1 + dual_sums) * gram_ld());
    dual_output_at = take(samples);
    dual_lambda_at = take(samples + dual_sums * Team::stride(out(0)));
    dual_columns_at = take(in(0) * gram_ld());
    dense_at = take(2 * in(0) * Team::stride(out(0)));
  }
};

}  // namespace fastmeta::FASTMETA_ISA
