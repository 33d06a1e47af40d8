// The inner loop and its meta-gradient for one team.
//
//   theta_{k+1} = theta_k - alpha_k g_k
//   lambda_k    = lambda_{k+1} - H_k (alpha_k lambda_{k+1}),  d/d alpha_k = -lambda_{k+1} g_k
//
// Only theta_0..theta_K are kept; every R-pass recomputes its own activations.
#pragma once

#include "passes.h"

namespace fastmeta::FASTMETA_ISA {

// Sums over a run of consecutive tasks, in shared layout: the parameters' gradient, then the rates'.
template <class R>
struct Sums {
  R* parameters;
  R* rates;  // [rate_steps][shared_size]
};

// What all tasks share, in shared layout: the parameters without a task dimension, and the rates,
// 0 where a parameter does not adapt.
template <class R>
struct Common {
  const R* theta;  // [shared_size]
  const R* alpha;  // [rate_steps][shared_size]
};

template <class Team>
class Adaptation {
 public:
  using R = typename Team::Real;
  using V = Vec<R>;
  static constexpr i64 W = Team::W;

  // scratch: plan.scratch_size, and for the gradient of the rates rate_steps * theta_size more.
  Adaptation(const Plan<Team>& plan, const Common<R>& common, R* scratch)
      : plan_(plan), loop_(plan.loop), common_(common), scratch_(scratch), passes_(plan, scratch) {}

  // checkpoints: theta_1..theta_K of every team, or nullptr: nothing is kept
  void forward(i64 team, const ForwardOut<R>& out, R* checkpoints) {
    const Slice slice = plan_.slice(team);
    const R* theta = adapt(team, slice, checkpoints);
    if (out.fast) put_parameters(out.fast, theta, slice);
    if (!loop_.query.n) return;
    passes_.take(loop_.query, slice);
    passes_.forward(theta);
    const i64 Q = loop_.query.n, O = plan_.outputs();
    if (out.predictions)
      Team::scatter(out.predictions, passes_.predictions(), Q * O, O, 1, Q, O, slice);
    if (out.loss) Team::put_per_task(out.loss, slice, passes_.loss());
  }

  void backward(i64 team, const BackwardIn<R>& in, const R* checkpoints,
                const BackwardOut<R>& out, const Sums<R>& sums) {
    const Slice slice = plan_.slice(team);
    start_lambda(team, slice, in, checkpoints, out);
    const bool second = loop_.order == 2;
    if (loop_.steps > 0 && (second || out.rates)) {
      passes_.take(loop_.support, slice);
      if (out.rates) std::memset(rate_gradient(0), 0, rate_bytes());
      if (out.support_x) std::memset(support_gradient(), 0, support_bytes());
      for (i64 k = loop_.steps - 1; k >= 0; --k) {
        const R* theta = theta_at(k, team, slice, checkpoints);
        passes_.forward(theta);
        passes_.loss_gradient();
        if (second)
          second_order_step(k, theta, out, slice);
        else
          passes_.backward(theta, plan_.lowest_adapted, rate_target(k), false);
      }
      if (out.rates) add_rates(sums.rates);
      if (out.support_x) put_support_gradient(out.support_x, slice);
    } else if (out.support_x) {
      zero_support_gradient(out.support_x, slice);
    }
    put_gradient(out.parameters, slice, sums.parameters);
  }

 private:
  R* at(i64 offset) { return scratch_ + offset; }
  R* lambda() { return at(plan_.lambda_at); }
  R* direction() { return at(plan_.direction_at); }
  R* support_gradient() { return at(plan_.support_gradient_at); }
  size_t support_bytes() const {
    return sizeof(R) * size_t(loop_.support.n * Team::stride(plan_.in(0)));
  }
  R* rate_gradient(i64 k) { return at(plan_.scratch_size) + rate_step(k) * plan_.theta_size; }
  size_t rate_bytes() const { return sizeof(R) * size_t(plan_.rate_steps * plan_.theta_size); }
  i64 rate_step(i64 k) const { return plan_.rate_steps == 1 ? 0 : k; }
  const R* alpha(i64 k) const { return common_.alpha + rate_step(k) * plan_.shared_size; }

  template <class F>
  void each_linear(F f) const {
    for (int l = 0; l < plan_.n_nodes; ++l)
      if (plan_.linear(l)) f(l, plan_.node(l), plan_.theta_at[l], plan_.in(l), plan_.out(l));
  }

  // ---- forward --------------------------------------------------------------------------------

  const R* adapt(i64 team, Slice slice, R* checkpoints) {
    const R* theta = start(slice);
    if (!loop_.steps) return theta;
    passes_.take(loop_.support, slice);
    for (i64 k = 0; k < loop_.steps; ++k) {
      R* next = checkpoints ? checkpoint(checkpoints, team, k + 1)
                            : at(plan_.theta_work_at[(k + 1) % 2]);
      copy_unadapted(next, theta);
      passes_.forward(theta);
      passes_.loss_gradient();
      passes_.backward(theta, plan_.lowest_adapted, {Finish::Step, next, theta, alpha(k)}, false);
      theta = next;
    }
    return theta;
  }

  template <class P>
  P* checkpoint(P* checkpoints, i64 team, i64 k) const {
    return checkpoints + (team * loop_.steps + k - 1) * plan_.theta_size;
  }

  const R* theta_at(i64 k, i64 team, Slice slice, const R* checkpoints) {
    return k > 0 ? checkpoint(checkpoints, team, k) : start(slice);
  }

  void copy_unadapted(R* next, const R* theta) const {
    each_linear([&](int l, const Node& node, i64 at, i64 I, i64 O) {
      const i64 ld = Team::stride(O);
      if (!plan_.weight_adapts[l]) std::memcpy(next + at, theta + at, sizeof(R) * size_t(I * ld));
      if (node.bias >= 0 && !plan_.bias_adapts[l])
        std::memcpy(next + at + I * ld, theta + at + I * ld, sizeof(R) * size_t(ld));
    });
  }

  // ---- backward -------------------------------------------------------------------------------

  // lambda_K: what the query and the caller's own use of the fast weights say of theta_K.
  void start_lambda(i64 team, Slice slice, const BackwardIn<R>& in, const R* checkpoints,
                    const BackwardOut<R>& out) {
    std::memset(lambda(), 0, sizeof(R) * size_t(plan_.theta_size));
    if (loop_.query.n) {
      const R* theta = theta_at(loop_.steps, team, slice, checkpoints);
      passes_.take(loop_.query, slice);
      passes_.forward(theta);
      if (in.grad_loss) {
        passes_.scale_coefficients(Team::per_task(in.grad_loss, 1, slice));
        passes_.loss_gradient();
      } else {
        passes_.zero_gradient();
      }
      if (in.grad_predictions) passes_.add_gradient(in.grad_predictions, slice);
      passes_.backward(theta, 0, {Finish::Store, lambda()}, out.query_x != nullptr);
      if (out.query_x) put_query_gradient(out.query_x, slice);
    }
    if (in.grad_fast) add_fast_gradient(in.grad_fast, slice);
  }

  void second_order_step(i64 k, const R* theta, const BackwardOut<R>& out, Slice slice) {
    take_direction(k);
    const GradientTarget<R> rates = rate_target(k);
    passes_.r_pass(theta, direction(), 0, {Finish::Subtract, lambda()},
                   out.rates ? &rates : nullptr, out.support_x != nullptr);
    if (out.support_x) subtract_support_gradient();
  }

  GradientTarget<R> rate_target(i64 k) { return {Finish::RateGrad, rate_gradient(k), lambda()}; }

  // v = alpha_k lambda; 0 where a parameter does not adapt, since alpha is 0 there.
  void take_direction(i64 k) {
    each_linear([&](int l, const Node&, i64 base, i64, i64 O) {
      const i64 rows = plan_.rows_of(l), vectors = Team::vectors(O), ld = Team::stride(O);
      for (i64 r = 0; r < rows; ++r) {
        const R* rate = alpha(k) + plan_.shared_at[l] + r * Team::shared_stride(O);
        for (i64 v = 0; v < vectors; ++v) {
          const i64 i = base + r * ld + v * W;
          store(direction() + i, Team::shared_value(rate, v) * load(lambda() + i));
        }
      }
    });
  }

  // ---- between PyTorch's layout and the team's ------------------------------------------------

  // f(parameter index, offset in team layout, rows, columns, row step, column step in PyTorch's)
  template <class F>
  void each_parameter(F f) const {
    each_linear([&](int, const Node& node, i64 at, i64 I, i64 O) {
      f(node.weight, at, I, O, i64(1), I);
      if (node.bias >= 0) f(node.bias, at + I * Team::stride(O), i64(1), O, i64(0), i64(1));
    });
  }

  // theta_0
  const R* start(Slice slice) {
    if (Team::reads_shared && plan_.all_shared) return common_.theta;
    R* theta = at(plan_.theta_work_at[0]);
    each_parameter([&](int p, i64 at, i64 rows, i64 columns, i64 row_step, i64 column_step) {
      const Parameter<R>& from = loop_.parameters[p];
      if (from.task_stride)
        Team::gather(theta + at, from.data, from.task_stride, row_step, column_step, rows,
                     columns, slice);
    });
    each_shared_parameter([&](i64 at, i64 shared_at, i64 rows, i64 columns) {
      Team::spread(theta + at, common_.theta + shared_at, rows, columns);
    });
    return theta;
  }

  template <class F>
  void each_shared_parameter(F f) const {
    each_linear([&](int l, const Node& node, i64 at, i64 I, i64 O) {
      const i64 shared_at = plan_.shared_at[l];
      if (!loop_.parameters[node.weight].task_stride) f(at, shared_at, I, O);
      if (node.bias >= 0 && !loop_.parameters[node.bias].task_stride)
        f(at + I * Team::stride(O), shared_at + I * Team::shared_stride(O), i64(1), O);
    });
  }

  void put_parameters(R* const* out, const R* theta, Slice slice) const {
    each_parameter([&](int p, i64 at, i64 rows, i64 columns, i64 row_step, i64 column_step) {
      if (out[p])
        Team::scatter(out[p], theta + at, rows * columns, row_step, column_step, rows, columns,
                      slice);
    });
  }

  void add_fast_gradient(const R* const* grad, Slice slice) {
    each_parameter([&](int p, i64 at, i64 rows, i64 columns, i64 row_step, i64 column_step) {
      if (!grad[p]) return;
      R* taken = direction() + at;
      Team::gather(taken, grad[p], rows * columns, row_step, column_step, rows, columns, slice);
      const i64 n = rows * Team::stride(columns);
      for (i64 i = 0; i < n; i += W)
        store(lambda() + at + i, load(lambda() + at + i) + load(taken + i));
    });
  }

  // A parameter with a task dimension gets its gradient at once, a shared one through the sums.
  void put_gradient(R* const* out, Slice slice, R* sums) {
    each_parameter([&](int p, i64 at, i64 rows, i64 columns, i64 row_step, i64 column_step) {
      if (out[p] && loop_.parameters[p].task_stride)
        Team::scatter(out[p], lambda() + at, rows * columns, row_step, column_step, rows, columns,
                      slice);
    });
    add_to_sums(sums, lambda());
  }

  void add_rates(R* sums) {
    for (i64 k = 0; k < plan_.rate_steps; ++k)
      add_to_sums(sums + k * plan_.shared_size, rate_gradient(k));
  }

  void add_to_sums(R* sums, const R* from) const {
    each_linear([&](int l, const Node&, i64 at, i64, i64 O) {
      Team::add_to_shared(sums + plan_.shared_at[l], from + at, plan_.rows_of(l), O);
    });
  }

  void put_query_gradient(R* out, Slice slice) const {
    const i64 Q = loop_.query.n, I = plan_.in(0);
    Team::scatter(out, passes_.input_gradient_of_loss(), Q * I, I, 1, Q, I, slice);
  }

  void zero_support_gradient(R* out, Slice slice) const {
    const i64 n = loop_.support.n * plan_.in(0);
    std::memset(out + slice.first * n, 0, sizeof(R) * size_t(slice.tasks * n));
  }

  void subtract_support_gradient() {
    const R* r = passes_.r_input_gradient_of_loss();
    const i64 n = loop_.support.n * Team::stride(plan_.in(0));
    R* sum = support_gradient();
    for (i64 i = 0; i < n; i += W) store(sum + i, load(sum + i) - load(r + i));
  }

  void put_support_gradient(R* out, Slice slice) {
    const i64 S = loop_.support.n, I = plan_.in(0);
    Team::scatter(out, support_gradient(), S * I, I, 1, S, I, slice);
  }

  const Plan<Team>& plan_;
  const InnerLoop<R>& loop_;
  const Common<R>& common_;
  R* scratch_;
  Passes<Team> passes_;
};

}  // namespace fastmeta::FASTMETA_ISA
