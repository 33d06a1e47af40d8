// The inner loop and its meta-gradient for one team.
//
//   theta_{k+1} = theta_k - alpha_k g_k
//   lambda_k    = lambda_{k+1} - H_k (alpha_k lambda_{k+1}),  d/d alpha_k = -lambda_{k+1} g_k
//
// Only theta_0..theta_K are kept, and of large networks the query's values; every R-pass recomputes
// its own activations.
#pragma once

#include "parameters.h"

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

// Passes: forward, backward and the R-pass of some kind of network; Plan: where it keeps things.
template <class Plan, class Passes>
class Adaptation {
 public:
  using Team = typename Plan::Team;
  using R = typename Team::Real;
  using V = Vec<R>;
  static constexpr i64 W = Team::W;

  // scratch: plan.scratch_size, and for the gradient of the rates rate_steps * theta_size more.
  Adaptation(const Plan& plan, const Common<R>& common, R* scratch, const Crew& crew)
      : plan_(plan), loop_(plan.loop), common_(common), scratch_(scratch),
        passes_(plan, scratch, crew) {}

  // kept: theta_1..theta_K, then what backward wants of the query; nullptr: nothing is kept
  void forward(i64 team, const ForwardOut<R>& out, R* kept) {
    const Slice slice = plan_.slice(team);
    const R* theta = adapt(slice, kept);
    if (out.fast) put_parameters(out.fast, theta, slice);
    if (!loop_.query.n) return;
    passes_.take(loop_.query, slice);
    passes_.forward(theta, kept && plan_.query_size ? kept_query(kept) : nullptr);
    const i64 Q = loop_.query.n, O = plan_.outputs();
    if (out.predictions)
      Team::scatter(out.predictions, passes_.predictions(), Q * O, O, 1, Q, O, slice);
    if (out.loss) Team::put_per_task(out.loss, slice, passes_.loss());
  }

  void backward(i64 team, const BackwardIn<R>& in, const R* kept, const BackwardOut<R>& out,
                const Sums<R>& sums) {
    const Slice slice = plan_.slice(team);
    start_lambda(slice, in, kept, out);
    const bool second = loop_.order == 2;
    if (loop_.steps > 0 && (second || out.rates)) {
      passes_.take(loop_.support, slice);
      if (out.rates) std::memset(rate_gradient(0), 0, rate_bytes());
      if (out.support_x) std::memset(support_gradient(), 0, support_bytes());
      for (i64 k = loop_.steps - 1; k >= 0; --k) {
        const R* theta = theta_at(k, slice, kept);
        passes_.forward(theta, nullptr);
        passes_.loss_gradient();
        if (second)
          second_order_step(k, theta, out);
        else
          passes_.backward(theta, plan_.lowest_adapted, rate_target(k), false);
      }
      if (out.rates) add_rates(sums.rates);
      if (out.support_x) passes_.put_input(out.support_x, support_gradient(), slice);
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
    return sizeof(R) * size_t(plan_.input_size(loop_.support));
  }
  R* rate_gradient(i64 k) { return at(plan_.scratch_size) + rate_step(k) * plan_.theta_size; }
  size_t rate_bytes() const { return sizeof(R) * size_t(plan_.rate_steps * plan_.theta_size); }
  i64 rate_step(i64 k) const { return plan_.rate_steps == 1 ? 0 : k; }
  const R* alpha(i64 k) const { return common_.alpha + rate_step(k) * plan_.shared_size; }

  // ---- forward --------------------------------------------------------------------------------

  const R* adapt(Slice slice, R* kept) {
    const R* theta = start(slice);
    if (!loop_.steps) return theta;
    passes_.take(loop_.support, slice);
    for (i64 k = 0; k < loop_.steps; ++k) {
      R* next = kept ? kept + k * plan_.theta_size : at(plan_.theta_work_at[(k + 1) % 2]);
      copy_unadapted(next, theta);
      passes_.forward(theta, nullptr);
      passes_.loss_gradient();
      passes_.backward(theta, plan_.lowest_adapted, {Finish::Step, next, theta, alpha(k)}, false);
      theta = next;
    }
    return theta;
  }

  template <class P>
  P* kept_query(P* kept) const {
    return kept + loop_.steps * plan_.theta_size;
  }

  const R* theta_at(i64 k, Slice slice, const R* kept) {
    return k > 0 ? kept + (k - 1) * plan_.theta_size : start(slice);
  }

  void copy_unadapted(R* next, const R* theta) const {
    plan_.each_piece([&](const Piece& p) {
      if (!plan_.has_rate(p.parameter))
        std::memcpy(next + p.at, theta + p.at,
                    sizeof(R) * size_t(p.taps * p.rows * Team::stride(p.columns)));
    });
  }

  // ---- backward -------------------------------------------------------------------------------

  // lambda_K: what the query and the caller's own use of the fast weights say of theta_K.
  void start_lambda(Slice slice, const BackwardIn<R>& in, const R* kept,
                    const BackwardOut<R>& out) {
    std::memset(lambda(), 0, sizeof(R) * size_t(plan_.theta_size));
    if (loop_.query.n) {
      const R* theta = theta_at(loop_.steps, slice, kept);
      passes_.take(loop_.query, slice);
      if (plan_.query_size)
        passes_.resume(kept_query(kept), theta);
      else
        passes_.forward(theta, nullptr);
      if (in.grad_loss) {
        passes_.scale_coefficients(Team::per_task(in.grad_loss, 1, slice));
        passes_.loss_gradient();
      } else {
        passes_.zero_gradient();
      }
      if (in.grad_predictions) passes_.add_gradient(in.grad_predictions, slice);
      passes_.backward(theta, 0, {Finish::Store, lambda()}, out.query_x != nullptr);
      if (out.query_x) passes_.put_input(out.query_x, passes_.input_gradient_of_loss(), slice);
    }
    if (in.grad_fast) add_fast_gradient(in.grad_fast, slice);
  }

  void second_order_step(i64 k, const R* theta, const BackwardOut<R>& out) {
    take_direction(k);
    const GradientTarget<R> rates = rate_target(k);
    passes_.r_pass(theta, direction(), 0, {Finish::Subtract, lambda()},
                   out.rates ? &rates : nullptr, out.support_x != nullptr);
    if (out.support_x) subtract_support_gradient();
  }

  GradientTarget<R> rate_target(i64 k) { return {Finish::RateGrad, rate_gradient(k), lambda()}; }

  // v = alpha_k lambda; 0 where a parameter does not adapt, since alpha is 0 there.
  void take_direction(i64 k) {
    plan_.each_piece([&](const Piece& p) {
      const i64 rows = p.taps * p.rows, vectors = Team::vectors(p.columns);
      for (i64 r = 0; r < rows; ++r) {
        const R* rate = alpha(k) + p.shared_at + r * Team::shared_stride(p.columns);
        for (i64 v = 0; v < vectors; ++v) {
          const i64 i = p.at + r * Team::stride(p.columns) + v * W;
          store(direction() + i, Team::shared_value(rate, v) * load(lambda() + i));
        }
      }
    });
  }

  // ---- between PyTorch's layout and the team's ------------------------------------------------

  // theta_0
  const R* start(Slice slice) {
    if (Team::reads_shared && plan_.all_shared) return common_.theta;
    R* theta = at(plan_.theta_work_at[0]);
    plan_.each_view([&](const View& v) {
      const Parameter<R>& from = loop_.parameters[v.parameter];
      if (from.task_stride)
        Team::gather(theta + v.at, from.data + v.offset, from.task_stride, v.row_step,
                     v.column_step, v.rows, v.columns, slice);
      else
        Team::spread(theta + v.at, common_.theta + v.shared_at, v.rows, v.columns);
    });
    return theta;
  }

  void put_parameters(R* const* out, const R* theta, Slice slice) const {
    plan_.each_view([&](const View& v) {
      if (out[v.parameter]) put_view(out, theta, v, slice);
    });
  }

  void put_view(R* const* out, const R* from, const View& v, Slice slice) const {
    Team::scatter(out[v.parameter] + v.offset, from + v.at, plan_.elements(v.parameter), v.row_step,
                  v.column_step, v.rows, v.columns, slice);
  }

  void add_fast_gradient(const R* const* grad, Slice slice) {
    plan_.each_view([&](const View& v) {
      if (!grad[v.parameter]) return;
      R* taken = direction() + v.at;
      Team::gather(taken, grad[v.parameter] + v.offset, plan_.elements(v.parameter), v.row_step,
                   v.column_step, v.rows, v.columns, slice);
      const i64 n = v.rows * Team::stride(v.columns);
      for (i64 i = 0; i < n; i += W)
        store(lambda() + v.at + i, load(lambda() + v.at + i) + load(taken + i));
    });
  }

  // A parameter with a task dimension gets its gradient at once, a shared one through the sums.
  void put_gradient(R* const* out, Slice slice, R* sums) {
    plan_.each_view([&](const View& v) {
      if (out[v.parameter] && plan_.per_task(v.parameter)) put_view(out, lambda(), v, slice);
    });
    add_to_sums(sums, lambda());
  }

  void add_rates(R* sums) {
    for (i64 k = 0; k < plan_.rate_steps; ++k)
      add_to_sums(sums + k * plan_.shared_size, rate_gradient(k));
  }

  void add_to_sums(R* sums, const R* from) const {
    plan_.each_piece([&](const Piece& p) {
      Team::add_to_shared(sums + p.shared_at, from + p.at, p.taps * p.rows, p.columns);
    });
  }

  void zero_support_gradient(R* out, Slice slice) const {
    const i64 n = loop_.support.n * plan_.sample_size();
    std::memset(out + slice.first * n, 0, sizeof(R) * size_t(slice.tasks * n));
  }

  void subtract_support_gradient() {
    const R* r = passes_.r_input_gradient_of_loss();
    const i64 n = plan_.input_size(loop_.support);
    R* sum = support_gradient();
    for (i64 i = 0; i < n; i += W) store(sum + i, load(sum + i) - load(r + i));
  }

  const Plan& plan_;
  const InnerLoop<R>& loop_;
  const Common<R>& common_;
  R* scratch_;
  Passes passes_;
};

}  // namespace fastmeta::FASTMETA_ISA
