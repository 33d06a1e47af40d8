// One inner step of a pack and its meta-gradient, from parameters that all tasks share and at one rate a.
// Of a layer let x be the inputs and g the gradients at the outputs, s of the support and q of the query:
//
//   theta_1 = theta_0 - a g_s^T x_s      v = -a lambda_1 = -a g_q^T x_q
//
// Both are sums over samples. With the mixtures
//
//   M = -a (x_q x_s^T + 1)   [Q][S], the 1 is the bias's        J = -a g_q g_s^T   [Q][S]
//
// neither has to be made, where samples are few for a layer's width:
//
//   x_q theta_1^T = x_q theta_0^T + M g_s      x_s v^T = M^T g_q
//   g_q theta_1   = g_q theta_0   + J x_s      g_s v   = J^T x_q
//
// and theta_0 is read from the numbers that all tasks share. The R-pass goes along v, so that
//
//   lambda_0 = lambda_1 + H v = g_q^T x_q + Rg_s^T x_s + g_s^T Rx_s
//
// is one product, whose rows go into the sums over tasks while they are in the first-level cache. Other
// layers have theta_1 and v as a matrix a task; so has the first one, whose inputs may be far from the
// origin and then cancel in theta_1, but not in M.
#pragma once

#include "../network/inner_loop.h"
#include "../network/passes.h"

namespace fastmeta::FASTMETA_ISA {

template <class R>
struct LowRankPlan : Plan<Pack<R>> {
  using Team = Pack<R>;
  using Base = Plan<Team>;
  using Base::loop, Base::n_nodes, Base::linear, Base::in, Base::out, Base::first_linear, Base::take,
      Base::values_row, Base::gradients_row, Base::y_at, Base::coefficient_at, Base::curvature_at;

  static constexpr i64 rows_at_once = 2 * max_rows(max_columns);  // of lambda_0

  i64 kept_support_x = 0, kept_support_values = 0, kept_support_gradients = 0;
  i64 kept_query_x = 0, kept_query_values = 0;
  i64 kept_step[Team::max_nodes];  // of a linear layer M, or theta_1
  i64 query_y_at, query_coefficient_at, query_curvature_at, query_gradients_at;
  i64 along_at[Team::max_nodes];  // J, or v
  i64 input_gradient_at, rows_of_lambda_at, kept_at;

  explicit LowRankPlan(const InnerLoop<R>& l) : Base(l, Base::all_values()) {
    this->theta_size = this->support_size = 0;  // of these none is kept
    this->query_size = lay_out_kept();
    lay_out_more_scratch();
  }
  static LowRankPlan keeping(const InnerLoop<R>& l) { return LowRankPlan(l); }

  static bool pays(const InnerLoop<R>& loop) {
    if (!loop.weights_stay || loop.steps != 1 || loop.order != 2 || !loop.query.n) return false;
    for (int p = 0; p < loop.network.n_parameters; ++p) {
      const Rate<R>& rate = loop.rates[p];
      if (loop.parameters[p].task_stride || rate.n != 1 || rate.data != loop.rates[0].data) return false;
    }
    bool below = false;
    for (int l = 0; l < loop.network.n_nodes; ++l) {
      const Node& node = loop.network.nodes[l];
      if (node.kind != NodeKind::Linear) continue;
      if (below && mixes(loop, node)) return true;
      below = true;
    }
    return false;
  }

  bool by_samples(int l) const { return l > first_linear && mixes(loop, this->node(l)); }
  bool has_bias(int l) const { return this->node(l).bias >= 0; }
  R rate() const { return *loop.rates[0].data; }

 private:
  // Multiply-adds: 3 S Q (I + O) for M, J and what is made of them, 3 S I O for theta_1, v and theirs.
  static bool mixes(const InnerLoop<R>& loop, const Node& node) {
    return loop.query.n * (node.in + node.out) < node.in * node.out;
  }

  i64 lay_out_kept() {
    i64 size = 0;
    const auto keep = [&](i64 scalars) {
      size += scalars;
      return size - scalars;
    };
    const i64 S = loop.support.n, Q = loop.query.n;
    kept_support_x = keep(S * Team::stride(in(0)));
    kept_support_values = keep(S * values_row);
    kept_support_gradients = keep(S * gradients_row);
    kept_query_x = keep(Q * Team::stride(in(0)));
    kept_query_values = keep(Q * values_row);
    for (int l = 0; l < n_nodes; ++l)
      if (linear(l)) kept_step[l] = keep(by_samples(l) ? mixture() : matrix(l));
    return size;
  }

  void lay_out_more_scratch() {
    const i64 Q = loop.query.n, most = larger(loop.support.n, Q);
    i64 widest = 0;
    query_y_at = take(Q * Team::stride(targets_of<Team>(loop.network, this->outputs())));
    query_coefficient_at = take(Q * Team::W);
    query_curvature_at = take(Q * Team::stride(this->outputs()));
    query_gradients_at = take(Q * gradients_row);
    for (int l = 0; l < n_nodes; ++l) {
      if (!linear(l)) continue;
      along_at[l] = take(by_samples(l) ? mixture() : matrix(l));
      widest = larger(widest, out(l));
    }
    input_gradient_at = take(most * Team::stride(in(0)));
    rows_of_lambda_at = take(rows_at_once * Team::stride(widest));
    kept_at = take(this->query_size);
  }

  i64 mixture() const { return loop.query.n * loop.support.n * Team::W; }
  i64 matrix(int l) const { return (in(l) + has_bias(l)) * Team::stride(out(l)); }
};

template <class R>
class LowRankStep {
 public:
  using Plan = LowRankPlan<R>;
  using Team = Pack<R>;
  static constexpr i64 W = Team::W;

  LowRankStep(const Plan& plan, const Common<R>& common, R* scratch, const Crew&)
      : plan_(plan), common_(common), scratch_(scratch), last_(plan.n_nodes - 1),
        first_(plan.first_linear),
        support_(plan, plan.loop.support,
                 {at(plan.y_at), at(plan.coefficient_at), at(plan.curvature_at), at(plan.program_at)}),
        query_(plan, plan.loop.query,
               {at(plan.query_y_at), at(plan.query_coefficient_at), at(plan.query_curvature_at),
                at(plan.program_at)}) {}

  void forward(i64 team, const ForwardOut<R>& out, R* kept) {
    const Slice slice = plan_.slice(team);
    begun_ = slice.first;
    place(kept ? kept : at(plan_.kept_at));
    support_.take(plan_, slice);
    query_.take(plan_, slice);
    put_values(support_, false);
    support_.head.gradient(predictions(support_), gradient(support_, last_));
    support_backward();
    put_values(query_, true);
    if (out.predictions) {
      const i64 Q = query_.n, O = plan_.outputs();
      Team::scatter(out.predictions, predictions(query_), Q * O, O, 1, Q, O, slice);
    }
    if (out.loss) Team::put_per_task(out.loss, slice, query_.head.loss(predictions(query_)));
  }

  void backward(i64 team, const BackwardIn<R>& in, const R* kept, const BackwardOut<R>& out,
                const Sums<R>& sums) {
    const Slice slice = plan_.slice(team);
    place(const_cast<R*>(kept));
    if (begun_ != slice.first) take_heads_again(slice);
    start_query_gradient(in, slice);
    query_backward(out.query_x);
    if (out.query_x) put_input(out.query_x, input_gradient(), query_.n, slice);
    r_forward();
    support_.head.r_gradient(predictions(support_), r(last_), rg());
    r_backward(sums.parameters, out.support_x, slice);
    if (out.support_x) put_input(out.support_x, rg(), support_.n, slice);
  }

 private:
  // The support or the query, [n] rows in team layout.
  struct Side {
    Side(const Plan& plan, const Samples<R>& samples, typename Head<Team>::Scratch scratch)
        : samples(samples), n(samples.n), head(plan.loop.network, plan.outputs(), scratch) {}

    void take(const Plan& plan, Slice slice) {
      const i64 I = plan.in(0);
      Team::gather(x, samples.x, n * I, I, 1, n, I, slice);
      head.take(samples, slice);
    }

    const Samples<R>& samples;
    i64 n;
    Head<Team> head;
    R *x = nullptr, *values = nullptr, *gradients = nullptr;
  };

  R* at(i64 offset) { return scratch_ + offset; }

  void place(R* kept) {
    kept_ = kept;
    support_.x = kept + plan_.kept_support_x;
    support_.values = kept + plan_.kept_support_values;
    support_.gradients = kept + plan_.kept_support_gradients;
    query_.x = kept + plan_.kept_query_x;
    query_.values = kept + plan_.kept_query_values;
    query_.gradients = at(plan_.query_gradients_at);
  }

  // What a forward of another call left in its scratch.
  void take_heads_again(Slice slice) {
    support_.head.take(support_.samples, slice);
    query_.head.take(query_.samples, slice);
    support_.head.gradient(predictions(support_), rg());  // for the curvature; g is kept
  }

  R* value(const Side& side, int l) const { return side.values + plan_.value_at[l] * side.n; }
  R* predictions(const Side& side) const { return value(side, last_); }
  R* input(const Side& side, int l) const { return l ? value(side, l - 1) : side.x; }
  // For what node l gives.
  R* gradient(const Side& side, int l) const { return side.gradients + plan_.gradient_at[l] * side.n; }
  R* gradient_of_input(const Side& side, int l) {
    return l ? gradient(side, l - 1) : input_gradient();
  }
  R* input_gradient() { return at(plan_.input_gradient_at); }
  R* r(int l) { return at(plan_.r_at[l]); }
  R* rg() { return at(plan_.rg_at[rg_side_]); }
  R* step(int l) const { return kept_ + plan_.kept_step[l]; }  // M, or theta_1
  R* along(int l) { return at(plan_.along_at[l]); }            // J, or v
  static i64 ld(i64 columns) { return Team::stride(columns); }

  // ---- products -------------------------------------------------------------------------------

  const R* weight(int l) const { return common_.theta + plan_.shared_at[l]; }  // [I][O], then the bias

  template <class Lane = Direct>
  static void multiply(const Term<R>& term, const Target<R>& target, i64 m, i64 n) {
    product<Lane>(&term, 1, target, m, n);
  }
  // to += what is added up
  static Target<R> onto(R* to, i64 columns) {
    Target<R> target{to, ld(columns)};
    target.continues = true;
    return target;
  }
  static Target<R> with_row(Target<R> target, bool has_row, const R* row) {
    if (has_row) target.finish = Finish::Bias, target.row = row;
    return target;
  }

  // z = x theta_0^T + b, of n rows
  void through_weight(int l, const R* x, i64 n, const Target<R>& to) const {
    multiply<Shared>({x, ld(plan_.in(l)), W, weight(l), plan_.out(l), 1, plan_.in(l)}, to, n,
                     plan_.out(l));
  }
  // g theta_0
  void back_through_weight(int l, const R* g, i64 n, const Target<R>& to) const {
    multiply<Shared>({g, ld(plan_.out(l)), W, weight(l), 1, plan_.out(l), plan_.out(l)}, to, n,
                     plan_.in(l));
  }
  // The same with a matrix a task, theta_1 or v.
  void through(int l, const R* matrix, const R* x, i64 n, R* to) const {
    const i64 I = plan_.in(l), O = plan_.out(l);
    multiply({x, ld(I), W, matrix, ld(O), W, I},
             with_row({to, ld(O)}, plan_.has_bias(l), matrix + I * ld(O)), n, O);
  }
  void back_through(int l, const R* matrix, const R* g, i64 n, R* to) const {
    const i64 I = plan_.in(l), O = plan_.out(l);
    multiply({g, ld(O), W, matrix, W, ld(O), O}, {to, ld(I)}, n, I);
  }
  // A mixture of the support's rows, or of the query's.
  void mix(const R* mixture, const R* rows, i64 columns, const Target<R>& to) const {
    multiply({mixture, support_.n * W, W, rows, ld(columns), W, support_.n}, to, query_.n, columns);
  }
  void mix_queries(const R* mixture, const R* rows, i64 columns, const Target<R>& to) const {
    multiply({mixture, W, support_.n * W, rows, ld(columns), W, query_.n}, to, support_.n, columns);
  }
  // factor (q s^T + more), of rows of both sides
  void put_mixture(R* to, const R* of_query, const R* of_support, i64 columns, R factor, R more) const {
    const i64 S = support_.n, Q = query_.n;
    multiply({of_query, ld(columns), W, of_support, W, ld(columns), columns}, {to, S * W}, Q, S);
    Team::each(Q * S * W, [=](i64 i) { store(to + i, factor * (load(to + i) + more)); });
  }
  static Term<R> over_samples(const R* x, i64 x_row, const R* g, i64 g_row, i64 n) {
    return {x, W, x_row, g, g_row, W, n};
  }
  static Term<R> over_samples(const R* g, i64 g_row, i64 n) {
    return {Team::ones(), 0, 0, g, g_row, W, n};
  }
  // to = from - scale g^T x, [I + bias][O]
  void subtract_gradient(int l, const Side& side, const R* from, R scale, R* to) const {
    const i64 I = plan_.in(l), O = plan_.out(l);
    Target<R> target{to, ld(O), Finish::Descend};
    target.from = from, target.scale = scale;
    const R* g = gradient(side, l);
    multiply(over_samples(input(side, l), ld(I), g, ld(O), side.n), target, I, O);
    if (!plan_.has_bias(l)) return;
    target.c += I * ld(O), target.from += I * ld(O);
    multiply(over_samples(g, ld(O), side.n), target, 1, O);
  }

  // ---- activations ----------------------------------------------------------------------------

  Left<R> left(const Side& side, int l) const {
    return {value(side, l), side.values + plan_.s1_at[l] * side.n,
            side.values + plan_.s2_at[l] * side.n};
  }
  auto each_vector(int l, i64 n) const {
    return [size = n * ld(plan_.out(l))](auto f) { Team::each(size, f); };
  }
  void back_through_activation(int l, const Side& side) {
    activation_backward<R>(plan_.node(l), gradient(side, l), gradient_of_input(side, l), left(side, l),
                           each_vector(l, side.n));
  }

  // ---- forward --------------------------------------------------------------------------------

  // At theta_0, or at theta_1.
  void put_values(const Side& side, bool adapted) {
    for (int l = 0; l <= last_; ++l) {
      if (plan_.linear(l))
        linear_forward(l, side, adapted);
      else
        activate<R>(plan_.node(l), input(side, l), left(side, l), each_vector(l, side.n));
    }
  }

  void linear_forward(int l, const Side& side, bool adapted) {
    const i64 I = plan_.in(l), O = plan_.out(l);
    const R* x = input(side, l);
    R* z = value(side, l);
    if (adapted && !plan_.by_samples(l)) return through(l, step(l), x, side.n, z);
    through_weight(l, x, side.n, with_row({z, ld(O)}, plan_.has_bias(l), weight(l) + I * O));
    if (!adapted) return;
    put_mixture(step(l), x, input(support_, l), I, -plan_.rate(), plan_.has_bias(l));
    mix(step(l), gradient(support_, l), O, onto(z, O));
  }

  void support_backward() {
    for (int l = last_; l >= first_; --l) {
      if (!plan_.linear(l)) {
        back_through_activation(l, support_);
        continue;
      }
      if (!plan_.by_samples(l)) put_theta_1(l);
      if (l > first_)
        back_through_weight(l, gradient(support_, l), support_.n,
                            {gradient(support_, l - 1), ld(plan_.in(l))});
    }
  }

  void put_theta_1(int l) {
    Team::spread(step(l), weight(l), plan_.in(l) + plan_.has_bias(l), plan_.out(l));
    subtract_gradient(l, support_, step(l), plan_.rate(), step(l));
  }

  // ---- backward -------------------------------------------------------------------------------

  void start_query_gradient(const BackwardIn<R>& in, Slice slice) {
    R* g = gradient(query_, last_);
    if (in.grad_loss) {
      query_.head.scale_coefficients(Team::per_task(in.grad_loss, 1, slice));
      query_.head.gradient(predictions(query_), g);
    } else {
      query_.head.zero(g);
    }
    if (in.grad_predictions) query_.head.add(g, rg(), in.grad_predictions, slice);
  }

  void query_backward(bool into_input) {
    for (int l = last_; l >= 0; --l) {
      const bool deeper = l > first_ || into_input;
      if (plan_.linear(l))
        linear_backward(l, deeper);
      else if (deeper)
        back_through_activation(l, query_);
    }
  }

  void linear_backward(int l, bool deeper) {
    const i64 I = plan_.in(l), O = plan_.out(l);
    const R* g = gradient(query_, l);
    R* below = gradient_of_input(query_, l);
    if (plan_.by_samples(l)) {
      put_mixture(along(l), g, gradient(support_, l), O, -plan_.rate(), 0);
      back_through_weight(l, g, query_.n, {below, ld(I)});
      return mix(along(l), input(support_, l), I, onto(below, I));
    }
    Team::zero(along(l), (I + plan_.has_bias(l)) * ld(O));
    subtract_gradient(l, query_, along(l), plan_.rate(), along(l));
    if (deeper) back_through(l, step(l), g, query_.n, below);
  }

  void r_forward() {
    for (int l = first_; l <= last_; ++l) {
      if (plan_.linear(l))
        r_linear_forward(l);
      else
        r_activate<R>(plan_.node(l), r(l - 1), r(l), left(support_, l), each_vector(l, support_.n));
    }
  }

  void r_linear_forward(int l) {
    const i64 O = plan_.out(l);
    if (plan_.by_samples(l))
      mix_queries(step(l), gradient(query_, l), O, {r(l), ld(O)});
    else
      through(l, along(l), input(support_, l), support_.n, r(l));
    if (l > first_) through_weight(l, r(l - 1), support_.n, onto(r(l), O));
  }

  void r_backward(R* sums, bool into_input, Slice slice) {
    for (int l = last_; l >= 0; --l) {
      const bool deeper = l > first_ || into_input;
      if (plan_.linear(l)) {
        add_lambda(l, sums + plan_.shared_at[l], slice);
        if (deeper) r_linear_backward(l);
      } else if (deeper) {
        r_activation_backward<R>(plan_.node(l), rg(), gradient(support_, l),
                                 l > first_ ? r(l - 1) : nullptr, false, left(support_, l),
                                 each_vector(l, support_.n));
      }
    }
  }

  void r_linear_backward(int l) {
    const i64 I = plan_.in(l);
    const R* above = rg();
    rg_side_ = 1 - rg_side_;
    if (plan_.by_samples(l))
      mix_queries(along(l), input(query_, l), I, {rg(), ld(I)});
    else
      back_through(l, along(l), gradient(support_, l), support_.n, rg());
    back_through_weight(l, above, support_.n, onto(rg(), I));
  }

  // lambda_0 of a layer, into the sums over tasks.
  void add_lambda(int l, R* sums, Slice slice) {
    const i64 I = plan_.in(l), O = plan_.out(l), S = support_.n, Q = query_.n;
    R* some = at(plan_.rows_of_lambda_at);
    const R *g_q = gradient(query_, l), *g_s = gradient(support_, l);
    for (i64 i = 0; i < I; i += plan_.rows_at_once) {
      const i64 rows = smaller(plan_.rows_at_once, I - i);
      const auto term = [&](const R* x, const R* g, i64 n) {
        return over_samples(x + i * W, ld(I), g, ld(O), n);
      };
      Term<R> terms[3] = {term(input(query_, l), g_q, Q), term(input(support_, l), rg(), S)};
      if (l > first_) terms[2] = term(r(l - 1), g_s, S);
      product<Direct>(terms, l > first_ ? 3 : 2, Target<R>{some, ld(O)}, rows, O);
      Team::add_to_shared(sums + i * O, some, rows, O, slice);
    }
    if (!plan_.has_bias(l)) return;
    const Term<R> terms[2] = {over_samples(g_q, ld(O), Q), over_samples(rg(), ld(O), S)};
    product<Direct>(terms, 2, Target<R>{some, ld(O)}, 1, O);
    Team::add_to_shared(sums + I * O, some, 1, O, slice);
  }

  void put_input(R* out, const R* gradient, i64 n, Slice slice) const {
    const i64 I = plan_.in(0);
    Team::scatter(out, gradient, n * I, I, 1, n, I, slice);
  }

  const Plan& plan_;
  const Common<R>& common_;
  R* scratch_;
  int last_, first_;  // the last node; the first linear one
  Side support_, query_;
  R* kept_ = nullptr;
  int rg_side_ = 0;
  i64 begun_ = -1;  // the first task of the slice that forward() has seen last
};

}  // namespace fastmeta::FASTMETA_ISA
