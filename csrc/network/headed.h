// Stages, and arithmetic on rows of what the last of them makes.
//
// Either part keeps its own plan, passes and scratch; of both parameters there is one theta, first those of the
// stages. Lanes are channels below and samples above, of one task.
#pragma once

#include "row_passes.h"
#include "stage_passes.h"

namespace fastmeta::FASTMETA_ISA {

template <class Team_>
struct HeadedPlan : Parameters<Team_> {
  using Team = Team_;
  using R = typename Team::Real;
  using Base = Parameters<Team>;
  using Base::loop, Base::theta_size, Base::shared_size;
  static constexpr bool has_dual_form = false, splits = true, has_moments = true;

 private:
  InnerLoop<R> below_, above_;

 public:
  const StagePlan<Team> stages;
  const RowPlan<Team> rows;
  i64 support_size, query_size;
  i64 rows_at, theta_work_at[2], lambda_at, lambda_before_at, direction_at, support_gradient_at;
  i64 scratch_size, worker_size;
  int lowest_adapted = 1;  // see HeadedPasses::backward

  explicit HeadedPlan(const InnerLoop<R>& l, bool keeps = false)
      : Base(l), below_(l), above_(l), stages(part(below_, false), keeps),
        rows(part(above_, true), keeps, stages_adapt()),
        support_size(stages.support_size ? stages.values_size + rows.support_size : 0),
        query_size(stages.query_size ? stages.values_size + rows.query_size : 0),
        worker_size(stages.worker_size) {
    for (int i = 0; i < stages.n_pieces; ++i) this->add(stages.pieces[i]);
    for (int i = 0; i < rows.n_pieces; ++i) this->add(rows.pieces[i]);
    lay_out_scratch();
  }

  static HeadedPlan keeping(const InnerLoop<R>& l) { return HeadedPlan(l, true); }

  bool keeps_rows() const { return rows.query_size > 0; }
  bool stages_adapt() const { return stages.lowest_adapted < stages.n_stages; }
  i64 outputs() const { return rows.outputs(); }
  i64 sample_size() const { return stages.sample_size(); }
  i64 input_size(const Samples<R>& s) const { return stages.input_size(s); }

 private:
  static const InnerLoop<R>& part(InnerLoop<R>& l, bool above) {
    if (above) {
      l.network.n_stages = 0;
    } else {
      l.network.written = RowProgram{};
      l.network.loss = LossKind::MeanSquaredError;  // of features, and asked for by nobody
    }
    return l;
  }

  i64 take(i64 scalars) {
    const i64 at = scratch_size;
    scratch_size += round_up(scalars, 64 / i64(sizeof(R)));
    return at;
  }
  void lay_out_scratch() {
    scratch_size = 0;
    take(stages.scratch_size);
    rows_at = take(rows.scratch_size);
    for (i64& place : theta_work_at) place = take(theta_size);
    lambda_at = take(theta_size);
    lambda_before_at = loop.order == 2 ? take(theta_size) : lambda_at;  // which stays, in first order
    direction_at = take(theta_size);
    support_gradient_at = take(input_size(loop.support));
  }
};

template <class Team>
class HeadedPasses {
 public:
  using R = typename Team::Real;
  using V = Vec<R>;
  using Plan = HeadedPlan<Team>;
  using GradientTo = GradientTarget<R>;
  static constexpr bool may_replace_direction = false;

  HeadedPasses(const Plan& plan, R* scratch, const Crew& crew)
      : plan_(plan), stages_(plan.stages, scratch, crew), rows_(plan.rows, scratch + plan.rows_at, crew) {}

  void take(const Samples<R>& samples, Slice slice) {
    stages_.take_inputs(samples, slice);
    rows_.take_made(samples, slice, stages_.predictions(), stages_.r_predictions());
  }
  void scale_coefficients(V factor) { rows_.scale_coefficients(factor); }

  void forward(const R* theta, R* keep) {
    stages_.forward(theta, keep);
    R* const above = keep && plan_.keeps_rows() ? keep + plan_.stages.values_size : nullptr;
    rows_.forward(of_rows(theta), above);
  }
  void resume(const R* kept, const R* theta) {
    stages_.resume(kept, theta);
    if (plan_.keeps_rows())
      rows_.resume(kept + plan_.stages.values_size, of_rows(theta));
    else
      rows_.forward(of_rows(theta), nullptr);
  }

  const R* predictions() const { return rows_.predictions(); }
  V loss() const { return rows_.loss(); }
  void loss_gradient() { rows_.loss_gradient(); }
  void zero_gradient() { rows_.zero_gradient(); }
  void add_gradient(const R* outside, Slice slice) { rows_.add_gradient(outside, slice); }

  // Of parameters that adapt where lowest > 0, else of all.
  void backward(const R* theta, int lowest, const GradientTo& target, bool into_input) {
    const bool goes_on = into_input || lowest == 0 || plan_.stages_adapt();
    rows_.backward(of_rows(theta), lowest, of_rows(target), goes_on);
    if (!goes_on) return;
    stages_.put_gradient(rows_.input_gradient_of_loss());
    stages_.backward(theta, lowest ? plan_.stages.lowest_adapted : 0, target, into_input);
  }

  // As Passes::r_pass.
  void r_pass(const R* theta, const R* v, int lowest, const GradientTo& target,
              const GradientTo* gradient, bool into_input) {
    stages_.r_forward(theta, v);
    const GradientTo above = of_rows(gradient ? *gradient : GradientTo{});
    rows_.r_pass(of_rows(theta), of_rows(v), lowest, of_rows(target), gradient ? &above : nullptr, true);
    stages_.put_gradient(rows_.input_gradient_of_loss());
    stages_.put_r_gradient(rows_.r_input_gradient_of_loss());
    stages_.r_backward(v, 0, target, gradient, into_input);
  }

  void put_moments(R* const* out, Slice slice) const { stages_.put_moments(out, slice); }

  const R* input_gradient_of_loss() { return stages_.input_gradient_of_loss(); }
  const R* r_input_gradient_of_loss() { return stages_.r_input_gradient_of_loss(); }
  void put_input(R* out, const R* gradient, Slice slice) const { stages_.put_input(out, gradient, slice); }

 private:
  const R* of_rows(const R* theta) const { return theta + plan_.stages.theta_size; }
  GradientTo of_rows(GradientTo to) const {
    if (to.c) to.c += plan_.stages.theta_size;
    if (to.from) to.from += plan_.stages.theta_size;
    if (to.rate) to.rate += plan_.stages.shared_size;
    return to;
  }

  const Plan& plan_;
  StagePasses<Team> stages_;
  RowPasses<Team> rows_;
};

}  // namespace fastmeta::FASTMETA_ISA
