// The inner loop and its meta-gradient for one team.
//
//   theta_{k+1} = theta_k - alpha_k g_k
//   lambda_k    = lambda_{k+1} - H_k (alpha_k lambda_{k+1}),  d/d alpha_k = -lambda_{k+1} g_k
//
// Only theta_0..theta_K are kept, and where that is cheaper the values of the query at theta_K and of
// the support at theta_0 or further; the other R-passes recompute their activations.
#pragma once

#include "parameters.h"
#include "row_team.h"

namespace fastmeta::FASTMETA_ISA {

// Sums over a run of consecutive tasks, in shared layout: the parameters' gradient, then the rates'.
template <class R>
struct Sums {
  R* parameters;
  R* rates;  // [rate_steps][shared_size]
};

// What all tasks share, in shared layout: the parameters without a task dimension, and the rates,
// 0 where a parameter does not adapt. Empty for a team that reads PyTorch's layout.
template <class R>
struct Common {
  const R* theta = nullptr;  // [shared_size]
  const R* alpha = nullptr;  // [rate_steps][shared_size]
};

// Passes: forward, backward and the R-pass of some kind of network; Plan: where it keeps things.
template <class Plan_, class Passes>
class Adaptation {
 public:
  using Plan = Plan_;
  using Team = typename Plan::Team;
  using R = typename Team::Real;
  using V = Vec<R>;
  static constexpr i64 W = Team::W;
  using RateBase = typename Team::RateBase;
  using GradientTo = GradientTarget<R, RateBase>;

  // scratch: plan.scratch_size, and for the gradient of the rates rate_steps * theta_size more.
  FASTMETA_CODE Adaptation(const Plan& plan, const Common<R>& common, R* scratch, const Crew& crew)
      : plan_(plan), loop_(plan.loop), common_(common), scratch_(scratch),
        passes_(plan, scratch, crew) {}

  // kept: theta_1..theta_K, then what backward wants of the query; nullptr: nothing is kept
  FASTMETA_CODE void forward(i64 team, const ForwardOut<R>& out, R* kept) {
    const Slice slice = plan_.slice(team);
    begin(slice);
    const R* theta = adapt(slice, kept);
    if (out.fast) put_parameters(out.fast, theta, slice);
    if (!loop_.query.n) return;
    take(loop_.query, slice);
    const i64 Q = loop_.query.n, O = plan_.outputs();
    V loss{};
    each_part(loop_.query, slice, [&](i64 begin, i64 rows) {
      passes_.forward(theta, kept_query(kept));
      if (out.predictions && leads())
        RowTeam<Team>::scatter(out.predictions + begin * O, passes_.predictions(), Q * O, O, 1, rows,
                               O, slice);
      if (out.loss) loss += passes_.loss();
    });
    if constexpr (Plan::has_moments)
      if (out.moments) passes_.put_moments(out.moments, slice);
    if (out.loss) Team::put_per_task(out.loss, slice, loss);
  }

  FASTMETA_CODE void backward(i64 team, const BackwardIn<R>& in, const R* kept,
                              const BackwardOut<R>& out, const Sums<R>& sums) {
    const Slice slice = plan_.slice(team);
    rates_ = Team::sums_in_place ? sums.rates : at(plan_.scratch_size);
    swapped_ = false;
    begin(slice);
    start_lambda(slice, in, kept, out);
    const bool second = loop_.order == 2;
    if (loop_.steps > 0 && (second || out.rates)) {
      take(loop_.support, slice);
      if (out.rates && !Team::sums_in_place)
        Team::zero(rates_, plan_.rate_steps * plan_.theta_size);
      if (out.support_x) start_support_gradient(out.support_x, slice);
      for (i64 k = loop_.steps - 1; k >= 0; --k) {
        const R* theta = theta_at(k, slice, kept);
        if (second) start_second_order_step(k, out);
        each_part(loop_.support, slice, [&](i64 begin, i64) {
          if (const R* values = kept_support(kept, k))
            passes_.resume(values, theta);
          else
            passes_.forward(theta, nullptr);
          passes_.loss_gradient();
          if (second)
            second_order_step(k, theta, begin, out, slice);
          else
            passes_.backward(theta, plan_.lowest_adapted, rate_target(k), false);
        });
        if (second && has_one_rate() && !Passes::may_replace_direction) swapped_ = !swapped_;
      }
      if (out.rates && !Team::sums_in_place) add_rates(sums.rates, slice);
      if (out.support_x && !Team::sums_in_output)
        passes_.put_input(out.support_x, support_gradient(), slice);
    } else if (out.support_x) {
      zero_support_gradient(out.support_x, slice);
    }
    put_gradient(out.parameters, slice, sums.parameters);
  }

 private:
  // What both calls need of a slice: a backward that follows its forward at once finds it in place.
  FASTMETA_CODE void begin(Slice slice) {
    if constexpr (Plan::has_dual_form) {
      if (!plan_.dual_size || begun_ == slice.first) return;
      begun_ = slice.first;
      passes_.begin(common_.theta, slice);
    }
  }
  // Of blocks that share a task, one writes what all have.
  FASTMETA_CODE bool leads() const {
    if constexpr (Team::shares) return Team::rank() == 0;
    return true;
  }
  FASTMETA_CODE R* at(i64 offset) { return scratch_ + offset; }
  FASTMETA_CODE R* lambda() { return at(swapped_ ? plan_.direction_at : plan_.lambda_at); }
  // lambda_{k+1}, which the rates need: part by part, lambda itself is on its way to lambda_k.
  FASTMETA_CODE R* lambda_before() {
    if constexpr (Team::splits || Plan::splits)
      if (!has_one_rate()) return at(plan_.lambda_before_at);
    return lambda();
  }
  // alpha_k lambda_{k+1}; where one rate serves all, lambda_k forms here and they change places, or
  // nothing is here and lambda_k forms in lambda itself.
  FASTMETA_CODE R* direction() { return at(swapped_ ? plan_.lambda_at : plan_.direction_at); }
  FASTMETA_CODE R* support_gradient() { return at(plan_.support_gradient_at); }
  FASTMETA_CODE R* rate_gradient(i64 k) { return rates_ + rate_step(k) * plan_.theta_size; }
  FASTMETA_CODE i64 rate_step(i64 k) const { return plan_.rate_steps == 1 ? 0 : k; }
  // The rates of step k; a team without shared layout takes them from the loop.
  FASTMETA_CODE RateBase alpha(i64 k) const {
    if constexpr (Team::shared_layout)
      return common_.alpha + rate_step(k) * plan_.shared_size;
    else
      return k;
  }

  // All samples of a task at once, or part by part where the scratch is too small for that.
  FASTMETA_CODE bool whole(const Samples<R>& samples) const {
    if constexpr (Team::splits) return samples.n <= plan_.part;
    return true;
  }
  FASTMETA_CODE void take(const Samples<R>& samples, Slice slice) {
    if (whole(samples)) passes_.take(samples, slice);
  }
  // f(begin, rows), with these samples taken; needs take() before.
  template <class F>
  FASTMETA_CODE void each_part(const Samples<R>& samples, Slice slice, F f) {
    if constexpr (!Team::splits) {
      f(i64(0), samples.n);
    } else {
      for (i64 begin = 0; begin < samples.n; begin += plan_.part) {
        const i64 rows = smaller(plan_.part, samples.n - begin);
        if (!whole(samples)) passes_.take(samples, slice, begin, rows);
        f(begin, rows);
      }
    }
  }

  // ---- forward --------------------------------------------------------------------------------

  FASTMETA_CODE const R* adapt(Slice slice, R* kept) {
    const R* theta = start(slice);
    if (!loop_.steps) return theta;
    take(loop_.support, slice);
    for (i64 k = 0; k < loop_.steps; ++k) {
      R* place = kept ? kept + k * plan_.theta_size : nullptr;
      R* next = place && !Team::keeps_away ? place : at(plan_.theta_work_at[(k + 1) % 2]);
      if (next == at(plan_.theta_work_at[0])) started_ = -1;
      copy_unadapted(next, theta);
      each_part(loop_.support, slice, [&](i64 begin, i64) {
        const R* from = begin ? next : theta;
        passes_.forward(theta, kept_support(kept, k));
        passes_.loss_gradient();
        passes_.backward(theta, plan_.lowest_adapted, {Finish::Step, next, from, alpha(k)}, false);
      });
      if (place && Team::keeps_away) Team::copy(place, next, plan_.theta_size);
      theta = next;
    }
    return theta;
  }

  // Where the values of the support at theta_k are kept, and those of the query; nullptr: nowhere.
  template <class P>
  FASTMETA_CODE P* kept_support(P* kept, i64 k) const {
    const bool keeps = kept && plan_.support_size && k < plan_.kept_steps;
    return keeps ? kept + loop_.steps * plan_.theta_size + k * plan_.support_size : nullptr;
  }
  template <class P>
  FASTMETA_CODE P* kept_query(P* kept) const {
    return kept && plan_.query_size ? kept + loop_.steps * plan_.theta_size +
                                          plan_.kept_steps * plan_.support_size
                                    : nullptr;
  }

  FASTMETA_CODE const R* theta_at(i64 k, Slice slice, const R* kept) {
    if (k == 0) return start(slice);
    const R* place = kept + (k - 1) * plan_.theta_size;
    if (!Team::keeps_away) return place;
    R* theta = at(plan_.theta_work_at[0]);
    Team::copy(theta, place, plan_.theta_size);
    return theta;
  }

  FASTMETA_CODE void copy_unadapted(R* next, const R* theta) const {
    plan_.each_piece([&](const Piece& p) {
      if (!plan_.has_rate(p.parameter))
        Team::copy(next + p.at, theta + p.at, p.taps * p.rows * Team::stride(p.columns));
    });
  }

  // ---- backward -------------------------------------------------------------------------------

  // lambda_K: what the query and the caller's own use of the fast weights say of theta_K.
  FASTMETA_CODE void start_lambda(Slice slice, const BackwardIn<R>& in, const R* kept,
                                  const BackwardOut<R>& out) {
    if (!loop_.query.n || !Team::shared_layout) Team::zero(lambda(), plan_.theta_size);
    if (loop_.query.n) {
      const R* theta = theta_at(loop_.steps, slice, kept);
      take(loop_.query, slice);
      each_part(loop_.query, slice, [&](i64 begin, i64) {
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
        const Finish finish = begin ? Finish::Add : Finish::Store;
        passes_.backward(theta, 0, {finish, lambda()}, out.query_x != nullptr);
        if (out.query_x) passes_.put_input(out.query_x, passes_.input_gradient_of_loss(), slice);
      });
    }
    if (in.grad_fast) add_fast_gradient(in.grad_fast, slice);
  }

  FASTMETA_CODE void start_second_order_step(i64 k, const BackwardOut<R>& out) {
    if (has_one_rate()) return;
    take_direction(k);
    if (out.rates && lambda_before() != lambda())
      Team::copy(lambda_before(), lambda(), plan_.theta_size);
  }

  // Of the samples from `begin` on; what those before have left is in the target.
  FASTMETA_CODE void second_order_step(i64 k, const R* theta, i64 begin, const BackwardOut<R>& out,
                                       Slice slice) {
    const GradientTo rates = rate_target(k);
    const R* along = has_one_rate() ? lambda() : direction();
    passes_.r_pass(theta, along, 0, hessian_target(k, begin), out.rates ? &rates : nullptr,
                   out.support_x != nullptr);
    if (out.support_x) subtract_support_gradient(out.support_x, slice, k);
  }

  FASTMETA_CODE bool has_one_rate() const {
    if constexpr (Team::shared_layout || Team::steps_by_one_rate) return plan_.one_rate;
    return false;
  }
  // 1: alpha is in the direction already.
  FASTMETA_CODE R one_rate(i64 k) const {
    if constexpr (Team::shared_layout)
      if (has_one_rate()) return plan_.one_rate->data[k * plan_.one_rate->step_stride];
    return R(1);
  }
  // H (alpha lambda) is alpha H lambda where alpha is a number: no direction has to be made.
  FASTMETA_CODE GradientTo hessian_target(i64 k, i64 begin) {
    if (!has_one_rate()) return {Finish::Subtract, lambda()};
    if constexpr (Team::steps_by_one_rate)
      return {Finish::Step, direction(), begin ? direction() : lambda(), alpha(k)};
    R* next = Passes::may_replace_direction ? lambda() : direction();
    return {Finish::Descend, next, lambda(), {}, one_rate(k)};
  }

  FASTMETA_CODE GradientTo rate_target(i64 k) {
    return {Finish::RateGrad, rate_gradient(k), lambda_before()};
  }

  // v = alpha_k lambda; 0 where a parameter does not adapt, since alpha is 0 there.
  FASTMETA_CODE void take_direction(i64 k) {
    plan_.each_piece([&](const Piece& p) {
      if constexpr (Team::shared_layout) {
        const i64 rows = p.taps * p.rows, vectors = Team::vectors(p.columns);
        const i64 rate_row = plan_.rate_row(p.parameter, p.columns);
        for (i64 r = 0; r < rows; ++r) {
          const R* rate = alpha(k) + p.shared_at + r * rate_row;
          for (i64 v = 0; v < vectors; ++v) {
            const i64 i = p.at + r * Team::stride(p.columns) + v * W;
            store(direction() + i, Team::shared_value(rate, v) * load(lambda() + i));
          }
        }
      } else {
        Team::times_rates(direction() + p.at, lambda() + p.at, p, loop_.rates[p.parameter], k);
      }
    });
    Team::barrier();
  }

  // ---- between PyTorch's layout and the team's ------------------------------------------------

  // theta_0, which a backward that follows its forward at once finds in place.
  FASTMETA_CODE const R* start(Slice slice) {
    if (Team::reads_shared && plan_.all_shared) return common_.theta;
    R* theta = at(plan_.theta_work_at[0]);
    if (started_ == slice.first) return theta;
    started_ = Team::shared_layout ? slice.first : -1;
    plan_.each_view([&](const View& v) {
      const Parameter<R>& from = loop_.parameters[v.parameter];
      if (from.task_stride || !Team::shared_layout)
        Team::gather(theta + v.at, from.data + v.offset, from.task_stride, v.row_step,
                     v.column_step, v.rows, v.columns, slice);
      else if constexpr (Team::shared_layout)
        Team::spread(theta + v.at, common_.theta + v.shared_at, v.rows, v.columns);
    });
    return theta;
  }

  FASTMETA_CODE void put_parameters(R* const* out, const R* theta, Slice slice) const {
    plan_.each_view([&](const View& v) {
      if (out[v.parameter]) put_view(out, theta, v, slice);
    });
  }

  FASTMETA_CODE void put_view(R* const* out, const R* from, const View& v, Slice slice) const {
    Team::scatter(out[v.parameter] + v.offset, from + v.at, plan_.elements(v.parameter), v.row_step,
                  v.column_step, v.rows, v.columns, slice);
  }

  FASTMETA_CODE void add_fast_gradient(const R* const* grad, Slice slice) {
    plan_.each_view([&](const View& v) {
      if (!grad[v.parameter]) return;
      R* taken = direction() + v.at;
      Team::gather(taken, grad[v.parameter] + v.offset, plan_.elements(v.parameter), v.row_step,
                   v.column_step, v.rows, v.columns, slice);
      R* sum = lambda() + v.at;
      Team::add(sum, taken, v.rows * Team::stride(v.columns));
    });
  }

  // A parameter with a task dimension gets its gradient at once, a shared one through the sums.
  FASTMETA_CODE void put_gradient(R* const* out, Slice slice, R* sums) {
    plan_.each_view([&](const View& v) {
      if (out[v.parameter] && plan_.per_task(v.parameter)) put_view(out, lambda(), v, slice);
    });
    add_to_sums(sums, lambda(), slice);
    if constexpr (Plan::has_dual_form)
      if (plan_.dual_size) passes_.add_dual_gradient(sums);
  }

  FASTMETA_CODE void add_rates(R* sums, Slice slice) {
    for (i64 k = 0; k < plan_.rate_steps; ++k)
      add_to_sums(sums + k * plan_.shared_size, rate_gradient(k), slice);
  }

  FASTMETA_CODE void add_to_sums(R* sums, const R* from, Slice slice) const {
    plan_.each_piece([&](const Piece& p) {
      if (p.at < plan_.dual_size) return;
      Team::add_to_shared(sums + p.shared_at, from + p.at, p.taps * p.rows, p.columns, slice);
    });
  }

  FASTMETA_CODE void zero_support_gradient(R* out, Slice slice) const {
    const i64 width = plan_.sample_size(), n = loop_.support.n * width;
    if constexpr (Team::shares)
      Team::zero_columns(out + slice.first * n + plan_.first(width), loop_.support.n, width,
                         plan_.held(width));
    else
      Team::zero(out + slice.first * n, slice.tasks * n);
  }

  FASTMETA_CODE void start_support_gradient(R* out, Slice slice) {
    if (Team::sums_in_output)
      zero_support_gradient(out, slice);
    else
      Team::zero(support_gradient(), plan_.input_size(loop_.support));
  }

  FASTMETA_CODE void subtract_support_gradient(R* out, Slice slice, i64 k) {
    const R* r = passes_.r_input_gradient_of_loss();
    if constexpr (Team::steps_by_one_rate) {
      passes_.subtract_input(out, r, slice, has_one_rate() ? k : -1);
    } else if constexpr (Team::sums_in_output) {
      passes_.subtract_input(out, r, slice);
    } else {
      R* sum = support_gradient();
      const R scale = one_rate(k);
      Team::each(plan_.input_size(loop_.support),
                 [&](i64 i) { store(sum + i, load(sum + i) - splat(scale) * load(r + i)); });
    }
  }

  const Plan& plan_;
  const std::remove_reference_t<typename Team::Loop>& loop_;
  const Common<R>& common_;
  R* scratch_;
  R* rates_ = nullptr;  // the gradient of the rates: [rate_steps][theta_size]
  i64 begun_ = -1;        // the first task of the slice of the latest begin()
  i64 started_ = -1;      // the first task of the slice whose theta_0 is in theta_work_at[0]
  bool swapped_ = false;  // lambda and direction
  Passes passes_;
};

}  // namespace fastmeta::FASTMETA_ISA
