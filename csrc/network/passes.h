// The passes over a chain for one team: forward, backward, and the R-pass (Pearlmutter 1994: the
// derivative of forward and backward along a direction v in parameter space).
#pragma once

#include "activation_passes.h"
#include "dual.h"
#include "head.h"

namespace fastmeta::FASTMETA_ISA {

template <class Team>
class Passes {
 public:
  using R = typename Team::Real;
  using V = Vec<R>;
  static constexpr i64 W = Team::W;
  using GradientTo = GradientTarget<R, typename Team::RateBase>;
  // Whether the R-pass may write where its direction is: a team of one thread needs no barrier for that.
  static constexpr bool may_replace_direction = Team::shared_layout;

  FASTMETA_CODE Passes(const Plan<Team>& plan, R* scratch, const Crew&)
      : plan_(plan), scratch_(scratch),
        head_(plan.loop.network, plan.outputs(),
              {at(plan.y_at), at(plan.coefficient_at), at(plan.curvature_at), at(plan.program_at)}),
        dual_(plan, scratch) {
    put_values(nullptr);
    top();
  }

  // Where the first layer has its dual form: before anything else of a slice.
  FASTMETA_CODE void begin(const R* theta_0, Slice slice) { dual_.take(theta_0, slice); }

  // Takes the samples of a slice: everything below works on them until the next call.
  FASTMETA_CODE void take(const Samples<R>& samples, Slice slice) {
    take(samples, slice, 0, samples.n);
  }

  // Samples begin.. begin + rows of the slice's tasks.
  FASTMETA_CODE void take(const Samples<R>& samples, Slice slice, i64 begin, i64 rows) {
    queries_ = &samples == &plan_.loop.query;
    total_ = samples.n;
    begin_ = begin;
    rows_ = rows;
    const i64 I = plan_.in(0);
    const R* x = samples.x + begin * I;
    if (plan_.copies_input) {
      Team::gather(at(plan_.x_at), x + plan_.first(I), total_ * I, I, 1, rows, plan_.held(I),
                   slice);
      x_ = at(plan_.x_at);
      x_row_ = plan_.in_row(0);
    } else {
      x_ = x + slice.first * total_ * I;
      x_row_ = I;
    }
    head_.take(samples, slice, begin, rows);
  }

  FASTMETA_CODE void scale_coefficients(V factor) { head_.scale_coefficients(factor); }

  // keep: where the values go for a later resume(), or nullptr.
  FASTMETA_CODE void forward(const R* theta, R* keep) {
    put_values(keep);
    // A single product's part may still be read: nothing else has come between two passes.
    if constexpr (Team::shares)
      if (plan_.first_linear == plan_.last_linear) Team::meet();
    for (int l = 0; l < plan_.n_nodes; ++l) {
      if (plan_.linear(l))
        linear_forward(l, theta);
      else
        activate(l);
    }
  }

  // As after forward() of the samples taken, whose values were kept; nothing writes to them.
  FASTMETA_CODE void resume(const R* kept, const R*) {
    put_values(const_cast<R*>(kept));
    resumed_ = keep_, keep_ = nullptr;
  }

  FASTMETA_CODE const R* predictions() const { return value(plan_.n_nodes - 1); }

  // Of the samples taken.
  FASTMETA_CODE V loss() {
    R* scratch = at(plan_.g_at[0]);  // not g, which may be a kept gradient
    return head_.loss(predictions(), scratch);
  }

  // g = d loss / d predictions
  FASTMETA_CODE void loss_gradient() {
    top();
    head_.gradient(predictions(), g());
  }
  FASTMETA_CODE void zero_gradient() {
    top();
    head_.zero(g());
  }
  // g += a gradient given from outside, [T, rows, O]
  FASTMETA_CODE void add_gradient(const R* outside, Slice slice) {
    head_.add(g(), rg(), outside, slice);
  }

  // Hands the weight gradients of nodes lowest.. to the target; leaves d/dx in g if asked.
  // Parameters that do not adapt are skipped when the target is an inner step.
  FASTMETA_CODE void backward(const R* theta, int lowest, const GradientTo& target,
                              bool into_input) {
    for (int l = plan_.n_nodes - 1; l >= lowest; --l) {
      if (!plan_.linear(l)) {
        if (l > lowest || into_input) activation_backward(l);
        continue;
      }
      if (!plan_.whole(l + 1)) complete(g(), plan_.out(l));
      const Term<R> term = weight_term(l, input(l), g());
      weight_gradient(l, &term, 1, target);
      if (l > lowest || into_input) input_gradient(l, theta);
    }
    Team::barrier();
  }

  // Needs forward() and loss_gradient() at theta. Along `direction` v:
  //   target   receives the Hessian-vector product H v of nodes lowest.., where v itself is
  //            only if may_replace_direction
  //   gradient receives the gradient itself (for the inner rates), of the nodes that adapt, if given
  //   rg       is left holding the derivative of d loss / d x along v, if asked
  FASTMETA_CODE void r_pass(const R* theta, const R* v, int lowest, const GradientTo& target,
                            const GradientTo* gradient, bool into_input) {
    for (int l = plan_.lowest_adapted; l < plan_.n_nodes; ++l) {
      if (plan_.linear(l))
        r_linear_forward(l, theta, v);
      else
        r_activate(l);
    }
    head_.r_gradient(predictions(), at(plan_.r_at[plan_.n_nodes - 1]), rg());
    for (int l = plan_.n_nodes - 1; l >= lowest; --l) {
      const bool deeper = l > lowest || into_input;
      if (!plan_.linear(l)) {
        if (deeper) r_activation_backward(l);
        continue;
      }
      if (!plan_.whole(l + 1)) complete(g(), plan_.out(l), rg());
      if constexpr (Team::has_dual_form)
        if (deeper && dual(l)) dual_.put_direction();
      const Term<R> plain = weight_term(l, input(l), g());
      Term<R> terms[2] = {weight_term(l, input(l), rg())};
      if (has_r(l)) terms[1] = r_weight_term(l);
      const auto put_gradients = [&] {
        if (gradient && plan_.adapts(l)) weight_gradient(l, &plain, 1, *gradient);
        weight_gradient(l, terms, has_r(l) ? 2 : 1, target);
      };
      if (!may_replace_direction) put_gradients();
      if (deeper) r_input_gradient(l, theta, v);  // the last to read the direction
      if (may_replace_direction) put_gradients();
    }
    Team::barrier();
  }

  // What lambda has come to in the first layer's dual form, into the sums over tasks.
  FASTMETA_CODE void add_dual_gradient(R* sums) const { dual_.add_gradient(sums); }

  FASTMETA_CODE const R* input_gradient_of_loss() const { return g(); }
  FASTMETA_CODE const R* r_input_gradient_of_loss() const { return rg(); }

  // A gradient of the inputs, in team layout, into PyTorch's [T, rows, I].
  FASTMETA_CODE void put_input(R* out, const R* gradient, Slice slice) const {
    const i64 I = plan_.in(0);
    Team::scatter(out + begin_ * I + plan_.first(I), gradient, total_ * I, I, 1, rows_,
                  plan_.held(I), slice);
  }
  // The same, taken away from what is there.
  FASTMETA_CODE void subtract_input(R* out, const R* gradient, Slice slice) const {
    const i64 I = plan_.in(0);
    Team::subtract(out + begin_ * I + plan_.first(I), gradient, total_ * I, I, rows_,
                   plan_.held(I), slice);
  }

 private:
  struct Matrix {
    const R* p;
    i64 row;  // scalars from a row to the next
  };

  FASTMETA_CODE R* at(i64 offset) { return scratch_ + offset; }
  FASTMETA_CODE const R* at(i64 offset) const { return scratch_ + offset; }

  FASTMETA_CODE R* g() { return g_; }
  FASTMETA_CODE R* rg() { return at(plan_.rg_at[side_]); }
  FASTMETA_CODE const R* g() const { return g_; }
  FASTMETA_CODE const R* rg() const { return at(plan_.rg_at[side_]); }
  FASTMETA_CODE R* other_g() { return at(plan_.g_at[1 - side_]); }
  FASTMETA_CODE R* other_rg() { return at(plan_.rg_at[1 - side_]); }
  // The gradient for what node l gives, where such gradients are kept.
  FASTMETA_CODE R* gradient(R* of, int l) const { return of + plan_.gradient_at[l] * rows_; }
  FASTMETA_CODE void top() {
    side_ = 0;
    g_ = keep_ ? gradient(keep_, plan_.n_nodes - 1) : at(plan_.g_at[0]);
  }
  // To node l's input; g is there.
  FASTMETA_CODE void flip(R* g) {
    side_ = 1 - side_;
    g_ = g;
  }

  FASTMETA_CODE void put_values(R* keep) {
    values_ = keep ? keep : at(plan_.values_at);
    values_rows_ = keep ? rows_ : plan_.part;
    const bool gradients = keep && plan_.gradients_row && !queries_;
    keep_ = gradients ? keep + plan_.values_row * rows_ : nullptr;
    resumed_ = nullptr;
  }
  FASTMETA_CODE R* value(int l) const { return values_ + plan_.value_at[l] * values_rows_; }

  FASTMETA_CODE Matrix input(int l) const {
    if (l == 0) return {x_, x_row_};
    return {value(l - 1) + plan_.in_first(l), plan_.in_row(l)};
  }
  FASTMETA_CODE bool dual(int l) const { return l == 0 && plan_.dual_size; }
  // Is there a derivative of node l's input? Not below the first parameter that adapts.
  FASTMETA_CODE bool has_r(int l) const { return l > plan_.lowest_adapted; }
  FASTMETA_CODE Matrix r_input(int l) const {
    return {at(plan_.r_at[l - 1]) + plan_.in_first(l), Team::stride(plan_.in(l))};
  }

  // What blocks that share a task exchange. A product over a block's rows of the weights is a part of
  // the sum over k, in all columns: reduce() adds up the parts, in the columns that the block goes on
  // with. complete() gets all columns from their blocks.
  FASTMETA_CODE R* part_of_product(int l, R* values, R* top) const {
    return Team::shares && plan_.whole(l + 1) ? top : values;
  }
  FASTMETA_CODE void reduce(int l, R* values, R* top) const {
    if constexpr (Team::shares) {
      const i64 width = plan_.out(l), ld = Team::stride(width), first = plan_.in_first(l + 1);
      Team::meet();
      Team::sum_parts(values + first, part_of_product(l, values, top) + first, rows_, ld,
                      plan_.whole(l + 1) ? width : plan_.held(width), plan_.blocks);
    }
    Team::barrier();
  }
  FASTMETA_CODE void complete(R* m, i64 width, R* other = nullptr) const {
    if constexpr (Team::shares) {
      Team::meet();
      Team::pull(m, rows_, width, plan_.share(width));
      if (other) Team::pull(other, rows_, width, plan_.share(width));
      Team::barrier();
    }
  }

  // ---- products of a Linear node --------------------------------------------------------------

  FASTMETA_CODE Term<R> forward_term(int l, Matrix x, const R* theta) const {
    if (plan_.along(l))  // lanes along the depth
      return {x.p, x.row, W, theta + plan_.theta_at[l], W, plan_.in(l), plan_.in(l) / W};
    return {x.p, x.row, Team::element, theta + plan_.theta_at[l],
            Team::stride(plan_.out(l)), W, plan_.held(plan_.in(l))};
  }
  FASTMETA_CODE Term<R> weight_term(int l, Matrix x, const R* g) const {
    if (plan_.along(l)) return {g, Team::element, Team::stride(plan_.out(l)), x.p, x.row, W, rows_};
    return {x.p, Team::element, x.row, g, Team::stride(plan_.out(l)), W, rows_};
  }
  FASTMETA_CODE Term<R> r_weight_term(int l) const {
    return weight_term(l, r_input(l), g());
  }
  // g W^T; a team whose lanes are columns needs W^T as a matrix.
  FASTMETA_CODE Term<R> input_term(int l, const R* g, const R* weight, int scratch = 0) {
    const i64 ld = Team::stride(plan_.out(l));
    if (plan_.along(l)) return {g, ld, Team::element, weight, plan_.in(l), W, plan_.out(l)};
    if (!Team::transposes) return {g, ld, Team::element, weight, W, ld, plan_.out(l)};
    R* transposed = at(plan_.transposed_at[scratch]);
    Team::transpose(transposed, weight, plan_.in(l), plan_.out(l));
    return {g, ld, Team::element, transposed, Team::stride(plan_.in(l)), W, plan_.out(l)};
  }

  FASTMETA_CODE const R* weight(int l, const R* theta) {
    if constexpr (Team::has_dual_form)
      if (dual(l)) return dual_.weight(theta);
    return theta + plan_.theta_at[l];
  }
  FASTMETA_CODE const R* direction(int l, const R* v) const {
    if constexpr (Team::has_dual_form)
      if (dual(l)) return dual_.direction();
    return v + plan_.theta_at[l];
  }

  // Whoever reads the result or overwrites an operand next needs a barrier first.
  FASTMETA_CODE void multiply(const Term<R>* terms, int n, const Target<R>& target, i64 m,
                              i64 columns) const {
    product<typename Team::Lane>(terms, n, target, m, Team::vectors(columns));
  }
  // What node l makes of its inputs, or its derivative.
  FASTMETA_CODE void multiply_forward(int l, const Term<R>* terms, int n, const Target<R>& target) const {
    if constexpr (Team::has_lanes_along_inputs)
      if (plan_.along(l)) return inner_products(terms, n, target, rows_, plan_.out(l));
    multiply(terms, n, target, rows_, plan_.out(l));
  }

  FASTMETA_CODE const R* bias_row(int l, const R* theta) const {
    return theta + plan_.theta_at[l] + plan_.weight_rows(l) * Team::stride(plan_.weight_columns(l));
  }

  FASTMETA_CODE void linear_forward(int l, const R* theta) {
    if constexpr (Team::has_dual_form)
      if (dual(l)) return dual_.forward(theta, value(l), queries_);
    const Term<R> term = forward_term(l, input(l), theta);
    R *values = value(l), *top = at(plan_.top_at);
    Target<R> target{part_of_product(l, values, top), Team::stride(plan_.out(l))};
    if (plan_.node(l).bias >= 0 && plan_.held(1)) {
      target.finish = Finish::Bias;
      target.row = bias_row(l, theta);
    }
    multiply_forward(l, &term, 1, target);
    reduce(l, values, top);
  }

  FASTMETA_CODE void r_linear_forward(int l, const R* theta, const R* v) {
    if constexpr (Team::has_dual_form)
      if (dual(l)) return dual_.r_forward(at(plan_.r_at[l]));
    Term<R> terms[2];
    int n = 0;
    if (has_r(l)) terms[n++] = forward_term(l, r_input(l), theta);
    if (plan_.weight_adapts[l]) terms[n++] = forward_term(l, input(l), v);
    R *values = at(plan_.r_at[l]), *top = at(plan_.r_top_at);
    Target<R> target{part_of_product(l, values, top), Team::stride(plan_.out(l))};
    if (plan_.bias_adapts[l] && plan_.held(1)) {
      target.finish = Finish::Bias;
      target.row = bias_row(l, v);
    }
    multiply_forward(l, terms, n, target);
    reduce(l, values, top);
  }

  // Leaves the barrier to what follows: nothing reads the target before the pass ends.
  FASTMETA_CODE void weight_gradient(int l, const Term<R>* terms, int n,
                                     const GradientTo& to) {
    if constexpr (Team::has_dual_form)
      if (dual(l)) return dual_.take_gradient(terms[0].b, to);
    const bool adapting_only = to.finish == Finish::Step || to.finish == Finish::RateGrad;
    const i64 columns = plan_.weight_columns(l), base = plan_.theta_at[l];
    const i64 weight_size = plan_.weight_rows(l) * Team::stride(columns);
    const auto target = [&](bool of_bias) {
      const i64 offset = base + of_bias * weight_size;
      Target<R> t{to.c + offset, Team::stride(columns), to.finish};
      t.from = to.from ? to.from + offset : nullptr;
      t.scale = to.scale;
      if constexpr (Team::shared_layout) {
        const int parameter = of_bias ? plan_.node(l).bias : plan_.node(l).weight;
        const i64 shared = of_bias * plan_.weight_rows(l) * Team::shared_stride(columns);
        t.rate_m = plan_.rate_row(parameter, columns);
        t.rate = to.rate ? to.rate + plan_.shared_at[l] + shared : nullptr;
      } else if (to.finish == Finish::Step) {
        const Node& node = plan_.node(l);
        const Rate<R>& rate = plan_.loop.rates[of_bias ? node.bias : node.weight];
        const i64 down = of_bias ? 0 : 1;
        Team::put_rates(t, rate, to.rate, down, of_bias ? 1 : node.in, plan_.first(node.in) * down);
      }
      return t;
    };
    if (!adapting_only || plan_.weight_adapts[l])
      multiply(terms, n, target(false), plan_.along(l) ? plan_.out(l) : plan_.held(plan_.in(l)), columns);
    if (plan_.node(l).bias < 0 || (adapting_only && !plan_.bias_adapts[l])) return;
    // The bias is a weight on an input that is always 1; its derivative along v is 0.
    const R* g = plan_.along(l) ? terms[0].a : terms[0].b;
    const Term<R> sum{Team::ones(), 0, 0, g, Team::stride(plan_.out(l)), W, rows_};
    multiply(&sum, 1, target(true), plan_.held(1), plan_.out(l));
  }

  FASTMETA_CODE void input_gradient(int l, const R* theta) {
    const Term<R> term = input_term(l, g(), weight(l, theta));
    R* below = keep_ ? gradient(keep_, l - 1) : other_g();
    multiply(&term, 1, {below + plan_.in_first(l), plan_.in_row(l)}, rows_,
             plan_.held(plan_.in(l)));
    flip(below);
    Team::barrier();
  }

  FASTMETA_CODE void r_input_gradient(int l, const R* theta, const R* v) {
    const i64 ld = plan_.in_row(l), first = plan_.in_first(l), width = plan_.held(plan_.in(l));
    Term<R> terms[2] = {input_term(l, rg(), weight(l, theta))};
    if (has_r(l) && !resumed_) {
      Term<R> plain = terms[0];
      plain.a = g();
      multiply(&plain, 1, {other_g() + first, ld}, rows_, width);
    }
    if (plan_.weight_adapts[l]) terms[1] = input_term(l, g(), direction(l, v), 1);
    multiply(terms, plan_.weight_adapts[l] ? 2 : 1, {other_rg() + first, ld}, rows_, width);
    flip(resumed_ && l > 0 ? gradient(resumed_, l - 1) : other_g());
    Team::barrier();
  }

  // ---- activations ----------------------------------------------------------------------------

  // f(i) for every vector of an activation's values that this team goes on with; its input is laid
  // out alike.
  template <class F>
  FASTMETA_INLINE void each_vector(int l, F f) const {
    if constexpr (Team::shares)
      Team::each_of(rows_, plan_.in_row(l), plan_.in_first(l), plan_.in_columns(l), f);
    else
      Team::each(rows_ * Team::stride(plan_.out(l)), f);
  }

  FASTMETA_CODE Left<R> left(int l) const {
    return {value(l), values_ + plan_.s1_at[l] * values_rows_,
            values_ + plan_.s2_at[l] * values_rows_};
  }

  FASTMETA_CODE void activate(int l) {
    const R* z = l == 0 ? x_ : value(l - 1);
    FASTMETA_ISA::activate(plan_.node(l), z, left(l), [&](auto f) { each_vector(l, f); });
  }

  FASTMETA_CODE void activation_backward(int l) {
    R* below = keep_ && l > 0 ? gradient(keep_, l - 1) : g();
    FASTMETA_ISA::activation_backward<R>(plan_.node(l), g(), below, left(l),
                                [&](auto f) { each_vector(l, f); });
    g_ = below;
  }

  FASTMETA_CODE void r_activate(int l) {
    FASTMETA_ISA::r_activate<R>(plan_.node(l), at(plan_.r_at[l - 1]), at(plan_.r_at[l]), left(l),
                       [&](auto f) { each_vector(l, f); });
  }

  FASTMETA_CODE void r_activation_backward(int l) {
    const R* rz = has_r(l) ? at(plan_.r_at[l - 1]) : nullptr;
    FASTMETA_ISA::r_activation_backward(plan_.node(l), rg(), g(), rz, !resumed_ && l > 0, left(l),
                               [&](auto f) { each_vector(l, f); });
    if (resumed_ && l > 0) g_ = gradient(resumed_, l - 1);
  }

  const Plan<Team>& plan_;
  R* scratch_;
  Head<Team> head_;
  std::conditional_t<Team::has_dual_form, DualLayer<Team>, NoDualLayer> dual_;
  bool queries_ = false;
  const R* x_ = nullptr;
  R* values_ = nullptr;
  R* g_ = nullptr;                        // the gradient where a backward is
  R *keep_ = nullptr, *resumed_ = nullptr;  // gradients that it leaves, or finds
  i64 values_rows_ = 0;
  i64 x_row_ = 0, total_ = 0, begin_ = 0, rows_ = 0;
  int side_ = 0;
};

}  // namespace fastmeta::FASTMETA_ISA
