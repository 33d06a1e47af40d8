// The passes over a chain as operations of a program: those of network/passes.h, with an activation
// in the product below it wherever there is one, and the bias as a weight on a column of ones.
#pragma once

#include "recorder.h"

namespace fastmeta::cuda {

template <class R>
class RecordedPasses {
 public:
  using Team = Recorder<R>;
  using GradientTo = GradientTarget<R, i64>;
  static constexpr bool may_replace_direction = false;

  RecordedPasses(const Plan<Team>& plan, R* scratch, const Crew& crew)
      : plan_(plan), scratch_(scratch), threads_(crew.threads) {}

  // The columns that follow values, once a block: ones where a product has a bias, zeros behind their
  // derivatives.
  void put_pads() {
    pad_column(place(plan_.x_at), plan_.in(0), 1);
    for (int l = 0; l + 1 < plan_.n_nodes; ++l) {
      pad_column(place(plan_.values_at + plan_.value_at[l] * plan_.part), plan_.out(l), 1);
      if (plan_.r_at[l]) pad_column(place(plan_.r_at[l]), plan_.out(l), 0);
    }
  }

  void take(const Samples<R>& samples, Slice slice) { take(samples, slice, 0, samples.n); }
  void take(const Samples<R>& samples, Slice slice, i64 begin, i64 rows) {
    const i64 I = plan_.in(0), targets = targets_of<Team>(network(), plan_.outputs());
    total_ = samples.n, begin_ = begin, rows_ = rows, labels_ = samples.labels;
    Team::gather(place(plan_.x_at), samples.x + begin * I, total_ * I, I, 1, rows, I, slice);
    recording->ops.back().meets = 0;
    if (samples.labels) {
      Op& op = recording->add(Do::GatherLabels, rows, 1);
      recording->with_tensor(op, samples.labels + begin, total_);
      op.to = int(plan_.y_at), op.to_row = 1, op.depth = int(plan_.outputs());
      op.meets = 0;
    } else if (samples.y) {
      Team::gather(place(plan_.y_at), samples.y + begin * targets, total_ * targets, targets, 1, rows,
                   targets, slice);
      recording->ops.back().meets = 0;
    }
    Op& op = recording->add(Do::Coefficients, rows, 1);
    op.to = int(plan_.coefficient_at), op.depth = int(total_), op.from = int(begin);
    op.terms = own_loss() && network().program.adds;
    if (samples.weight) recording->with_tensor(op, samples.weight, total_);
  }

  void scale_coefficients(R) {
    Op& op = recording->add(Do::ScaleCoefficients, rows_, 1);
    recording->with_tensor(op, address_of<R>(grad_loss), 1);
    op.to = int(plan_.coefficient_at);
  }

  void forward(const R* theta, R*) {
    for (int l = 0; l < plan_.n_nodes; ++l) {
      if (!plan_.linear(l)) {
        activate(l);
        continue;
      }
      Op& op = product(Do::Forward, rows_, plan_.out(l), plan_.in(l), input(l),
                       theta + plan_.theta_at[l], Team::stride(plan_.out(l)));
      op.to = at(value(l)), op.to_row = row(l);
      if (plan_.node(l).bias >= 0) op.bias = bias_row(l, theta);
      op.pad = 1;
      if (activated(l)) l = with_activation_of(op, l + 1);
      choose_tile(op);
    }
  }
  void resume(const R*, const R*) {}

  const R* predictions() const { return value(plan_.n_nodes - 1); }

  R loss() {
    Op& op = of_loss(Do::Loss, Do::OwnLoss);
    op.to = at(g()), op.depth = begin_ == 0;
    return 0;
  }
  void loss_gradient() {
    side_ = 0;
    Op& op = of_loss(Do::LossGradient, Do::OwnLossGradient);
    op.to = at(g());
  }
  void zero_gradient() {
    side_ = 0;
    Team::zero(g(), rows_ * Team::stride(plan_.outputs()));
  }
  void add_gradient(const R* outside, Slice slice) {
    const i64 O = plan_.outputs();
    Team::gather(rg(), outside + begin_ * O, total_ * O, O, 1, rows_, O, slice);
    Team::add(g(), rg(), rows_ * Team::stride(O));
  }

  void backward(const R* theta, int lowest, const GradientTo& target, bool into_input) {
    const auto goes_below = [&](int l) { return l > lowest || into_input; };
    for (int l = plan_.n_nodes - 1; l >= lowest; --l) {
      if (!plan_.linear(l)) {
        if (goes_below(l)) activation_backward(l);
        continue;
      }
      weight_gradient(l, input(l), nullptr, nullptr, target);
      if (!goes_below(l)) continue;
      Op& op = product(Do::InputGradient, rows_, plan_.in(l), plan_.out(l), g(),
                       theta + plan_.theta_at[l], Team::stride(plan_.out(l)));
      op.a_row = row(l);
      op.to = at(other_g()), op.to_row = in_row(l);
      if (l > lowest && !plan_.linear(l - 1) && goes_below(l - 1)) l = with_activation_of(op, l - 1);
      side_ = 1 - side_;
      choose_tile(op);
    }
    recording->meet();
  }

  void r_pass(const R* theta, const R* v, int lowest, const GradientTo& target,
              const GradientTo* gradient, bool into_input) {
    r_forward(theta, v);
    Op& head = of_loss(Do::LossRGradient, Do::OwnLossRGradient);
    head.value = int(plan_.r_at[plan_.n_nodes - 1]), head.to = at(rg());
    for (int l = plan_.n_nodes - 1; l >= lowest; --l) {
      const bool deeper = l > lowest || into_input;
      if (!plan_.linear(l)) {
        if (deeper) r_activation_backward(l);
        continue;
      }
      if (gradient && plan_.adapts(l)) weight_gradient(l, input(l), nullptr, nullptr, *gradient);
      weight_gradient(l, input(l), rg(), has_r(l) ? r_input(l) : nullptr, target);
      if (!deeper) continue;
      Op& op = product(Do::RInputGradient, rows_, plan_.in(l), plan_.out(l), rg(),
                       theta + plan_.theta_at[l], Team::stride(plan_.out(l)));
      op.a_row = row(l), op.a[1] = at(g());
      op.b[1] = plan_.weight_adapts[l] ? at(v + plan_.theta_at[l]) : -1;
      op.to = has_r(l) ? at(other_g()) : -1, op.r_to = at(other_rg()), op.to_row = in_row(l);
      if (l > lowest && !plan_.linear(l - 1) && (l - 1 > lowest || into_input)) {
        l = with_activation_of(op, l - 1);
        op.rz = has_r(l) ? int(plan_.r_at[l - 1]) : -1;
      }
      side_ = 1 - side_;
      choose_tile(op);
    }
    recording->meet();
  }

  const R* input_gradient_of_loss() const { return place(plan_.g_at[side_]); }
  const R* r_input_gradient_of_loss() const { return place(plan_.rg_at[side_]); }

  void put_input(R* out, const R* gradient, Slice slice) const {
    const i64 I = plan_.in(0);
    Team::scatter(out + begin_ * I, gradient, total_ * I, I, 1, rows_, I, slice);
  }
  // step: of the one rate that multiplies it, or -1.
  void subtract_input(R* out, const R* gradient, Slice, i64 step) const {
    const i64 I = plan_.in(0);
    Op& op = recording->add(Do::ScatterSubtract, rows_, I);
    recording->with_tensor(op, out + begin_ * I, total_ * I);
    op.from = at(gradient), op.from_row = int(Team::stride(I));
    op.row_step = I, op.column_step = 1;
    if (step >= 0) rate_into(op.bias_slot, op.bias_offset, plan_.loop.rates[0], step);
  }

 private:
  const auto& network() const { return plan_.loop.network; }
  bool own_loss() const { return network().loss == LossKind::Program; }

  R* place(i64 offset) const { return scratch_ + offset; }
  R* g() const { return place(plan_.g_at[side_]); }
  R* rg() const { return place(plan_.rg_at[side_]); }
  R* other_g() const { return place(plan_.g_at[1 - side_]); }
  R* other_rg() const { return place(plan_.rg_at[1 - side_]); }
  R* value(int l) const { return place(plan_.values_at + plan_.value_at[l] * plan_.part); }
  int kept(i64 at_row) const { return int(plan_.values_at + at_row * plan_.part); }

  int row(int l) const { return int(Team::stride(plan_.out(l))); }
  int in_row(int l) const { return int(Team::stride(plan_.in(l))); }
  const R* input(int l) const { return l == 0 ? place(plan_.x_at) : value(l - 1); }
  const R* r_input(int l) const { return place(plan_.r_at[l - 1]); }
  int bias_row(int l, const R* theta) const {
    return at(theta + plan_.theta_at[l] + plan_.in(l) * Team::stride(plan_.out(l)));
  }
  bool has_r(int l) const { return l > plan_.lowest_adapted; }
  bool activated(int l) const { return l + 1 < plan_.n_nodes && !plan_.linear(l + 1); }

  void pad_column(const R* matrix, i64 column, int number) const {
    Op& op = recording->add(Do::PadColumn, plan_.part, 1);
    op.to = at(matrix + column), op.to_row = int(Team::stride(column)), op.pad = number;
    op.meets = 0;
  }

  // Of the last node's outputs.
  Op& of_loss(Do named, Do own) const {
    Op& op = recording->add(own_loss() ? own : named, rows_, plan_.outputs());
    op.from = at(predictions()), op.from_row = op.to_row = row(plan_.n_nodes - 1);
    op.terms = own_loss() && labels_;
    return op;
  }

  // rows x columns, of a [rows, depth] and b.
  Op& product(Do code, i64 rows, i64 columns, i64 depth, const R* a, const R* b, i64 b_row) const {
    Op& op = recording->add(code, rows, columns);
    op.depth = int(depth), op.terms = 1;
    op.a[0] = at(a), op.a_row = int(Team::stride(depth));
    op.b[0] = at(b), op.b_row = int(b_row);
    return op;
  }

  // The tile whose rounds take the least: four columns and n rows cost 4 n multiply-adds and about
  // n + 4 loads a step.
  void choose_tile(Op& op) const {
    const int most = op.code == Do::RInputGradient ? 2 : 4;
    op.across = (op.columns + 3) / 4;
    op.across_inverse =
        op.across > 1 ? unsigned(((std::uint64_t(1) << 32) + op.across - 1) / op.across) : 0;
    i64 least = 0;
    for (int rows = 1; rows <= most; rows *= 2) {
      const i64 tiles = ceil_div(op.rows, rows) * op.across;
      const i64 cost = ceil_div(tiles, threads_) * (5 * rows + 4);
      if (rows > 1 && cost > least) continue;
      least = cost, op.tile_rows = rows, op.tiles = int(tiles);
    }
  }

  // Of node l; returns l.
  int with_activation_of(Op& op, int l) const {
    op.activation = l;
    op.value = at(value(l)), op.value_row = row(l);
    op.s1 = kept(plan_.s1_at[l]), op.s2 = kept(plan_.s2_at[l]);
    if (op.code == Do::Forward) op.to = op.value;
    return l;
  }

  void rate_into(int& slot, i64& offset, const Rate<R>& rate, i64 step) const {
    const Spot place = spot_of(rate.data + step * rate.step_stride);
    slot = place.slot, offset = place.offset;
  }

  // Sums over samples of input and gradient, and with r and r_in also of r_in and g. Nothing reads the
  // target before the pass ends.
  void weight_gradient(int l, const R* in, const R* r, const R* r_in, const GradientTo& to) const {
    const Node& node = plan_.node(l);
    const bool adapting_only = to.finish == Finish::Step || to.finish == Finish::RateGrad;
    const bool weight = !adapting_only || plan_.weight_adapts[l];
    const bool bias = node.bias >= 0 && (!adapting_only || plan_.bias_adapts[l]);
    if (!weight && !bias) return;
    const i64 first = weight ? 0 : plan_.in(l), last = bias ? plan_.in(l) + 1 : plan_.in(l);
    const i64 width = plan_.out(l), ld = Team::stride(width);
    const i64 offset = plan_.theta_at[l] + first * ld;
    Op& op = product(Do::WeightGradient, last - first, width, rows_, in + first, r ? r : g(), ld);
    op.a_row = in_row(l), op.to_row = int(ld);
    // Rates' gradients read lambda before the same threads change it, if they have the same tiles.
    op.meets = to.finish == Finish::RateGrad && !(weight && bias == (node.bias >= 0));
    if (r_in) op.terms = 2, op.a[1] = at(r_in + first), op.b[1] = at(g());
    op.bias_row = bias ? int(last - first) - 1 : -1;
    op.then = then(to.finish);
    if (to.finish == Finish::RateGrad)
      recording->with_tensor(op, to.c + offset, 0);
    else
      op.to = at(to.c + offset);
    if (to.from) op.from = at(to.from + offset);
    if (to.finish == Finish::Step) put_rates(op, node, to.rate, weight, bias);
    choose_tile(op);
  }

  void put_rates(Op& op, const Node& node, i64 step, bool weight, bool bias) const {
    if (weight) {
      const Rate<R>& rate = plan_.loop.rates[node.weight];
      rate_into(op.slot, op.offset, rate, step);
      op.row_step = rate.n > 1 ? 1 : 0, op.column_step = rate.n > 1 ? node.in : 0;
    }
    if (bias) {
      const Rate<R>& rate = plan_.loop.rates[node.bias];
      rate_into(op.bias_slot, op.bias_offset, rate, step);
      op.value = rate.n > 1;  // from a column to the next
    }
  }

  static Then then(Finish finish) {
    switch (finish) {
      case Finish::Add:
        return Then::Add;
      case Finish::Subtract:
        return Then::Subtract;
      case Finish::Step:
        return Then::Step;
      case Finish::RateGrad:
        return Then::RateGrad;
      default:
        return Then::Store;
    }
  }

  void r_forward(const R* theta, const R* v) {
    for (int l = plan_.lowest_adapted; l < plan_.n_nodes; ++l) {
      if (!plan_.linear(l)) {
        r_activate(l);
        continue;
      }
      const R* weights = theta + plan_.theta_at[l];
      const R* direction = v + plan_.theta_at[l];
      Op& op = product(Do::RForward, rows_, plan_.out(l), plan_.in(l), input(l), direction,
                       Team::stride(plan_.out(l)));
      op.terms = 0;
      if (has_r(l)) op.a[0] = at(r_input(l)), op.b[0] = at(weights), op.terms = 1;
      if (plan_.weight_adapts[l])
        op.a[op.terms] = at(input(l)), op.b[op.terms] = at(direction), ++op.terms;
      if (plan_.bias_adapts[l]) op.bias = bias_row(l, v);
      op.to = op.rz = int(plan_.r_at[l]), op.to_row = row(l);
      if (activated(l)) {
        l = with_activation_of(op, l + 1);
        op.to = int(plan_.r_at[l]);
      }
      choose_tile(op);
    }
  }

  // ---- activations that no product is in front of ------------------------------------------------

  Op& activation(Do code, int l) const {
    Op& op = recording->add(code, rows_, plan_.out(l));
    op.activation = l, op.to_row = op.from_row = op.value_row = row(l);
    op.value = at(value(l)), op.s1 = kept(plan_.s1_at[l]), op.s2 = kept(plan_.s2_at[l]);
    return op;
  }
  void activate(int l) const {
    Op& op = activation(Do::Activate, l);
    op.from = at(input(l)), op.to = op.value;
  }
  void activation_backward(int l) const { activation(Do::ActivationBackward, l).to = at(g()); }
  void r_activate(int l) const {
    Op& op = activation(Do::RActivate, l);
    op.rz = int(plan_.r_at[l - 1]), op.to = int(plan_.r_at[l]);
  }
  void r_activation_backward(int l) const {
    Op& op = activation(Do::RActivationBackward, l);
    op.to = at(g()), op.r_to = at(rg());
    op.rz = has_r(l) ? int(plan_.r_at[l - 1]) : -1;
  }

  const Plan<Team>& plan_;
  R* scratch_;
  int threads_;
  i64 total_ = 0, begin_ = 0, rows_ = 0;
  bool labels_ = false;
  int side_ = 0;
};

}  // namespace fastmeta::cuda
