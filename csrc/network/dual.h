// The first layer in its dual form. Its inputs are the samples, the same at every step, so all that an
// inner step or the recursion ever adds to its weights is a sum over samples:
//
//   W_k      = W_0 + X_s^T C_k                C_0 = 0,  C_{k+1} = C_k - alpha g_k         C  [S][O]
//   lambda_k = X_s^T L_s + X_q^T L_q          L_q = g of the query, L_s = -alpha sum Rg   L  [S + Q][O]
//
// with g the gradient at the layer's output (a bias is a weight on an input that is always 1). C and L
// stand for W and lambda, and products with the inputs become products with X_s X_s^T and X_s X_q^T,
// which are made once: of the four products of S x I x O a step, two remain for all steps together.
// (The dual form of gradient descent on a linear model; Irie et al. 2022, arXiv:2202.05798.)
#pragma once

#include "plan.h"

namespace fastmeta::FASTMETA_ISA {

// Of a team that does not have it.
struct NoDualLayer {
  template <class Plan, class R>
  FASTMETA_CODE NoDualLayer(const Plan&, R*) {}
};

template <class Team>
class DualLayer {
 public:
  using R = typename Team::Real;
  using GradientTo = GradientTarget<R, typename Team::RateBase>;
  static constexpr i64 W = Team::W;

  DualLayer(const Plan<Team>& plan, R* scratch)
      : plan_(plan), S_(plan.loop.support.n), Q_(plan.loop.query.n), I_(plan.in(0)),
        O_(plan.out(0)), ld_(Team::stride(O_)), gram_ld_(plan.gram_ld()),
        gram_(scratch + plan.gram_at), output_(scratch + plan.dual_output_at),
        lambda_(scratch + plan.dual_lambda_at), columns_(scratch + plan.dual_columns_at),
        dense_(scratch + plan.dense_at) {}

  // The samples of a slice, and theta_0: what all steps have in common.
  void take(const R* theta, Slice slice) {
    start_ = theta;
    support_ = plan_.loop.support.x + slice.first * S_ * I_;
    query_ = plan_.loop.query.x + slice.first * Q_ * I_;
    put_gram();
    put_output(support_, S_, output_);
    put_output(query_, Q_, output_ + S_ * ld_);
  }

  // values = X W_k^T + b_k of the support or the query, at theta_k
  void forward(const R* theta, R* values, bool queries) const {
    const R* output = queries ? output_ + S_ * ld_ : output_;
    const i64 rows = queries ? Q_ : S_;
    if (theta == start_) return Team::copy(values, output, rows * ld_);
    const Term<R> term = queries ? Term<R>{of_query(), 1, gram_ld_, steps(theta), ld_, W, S_}
                                 : Term<R>{gram_, gram_ld_, 1, steps(theta), ld_, W, S_};
    multiply(&term, 1, plus(output, values), rows, O_);
  }

  // What becomes of g: the first entry of lambda, an inner step, or a step of the recursion.
  void take_gradient(const R* g, const GradientTo& to) {
    if (to.finish == Finish::Store) {
      Team::copy(lambda_ + S_ * ld_, g, Q_ * ld_);
      Team::zero(lambda_, S_ * ld_);
    } else if (to.finish == Finish::Step) {
      const Vec<R> rate = splat(to.rate[plan_.shared_at[0]]);
      const R* from = to.from == start_ ? nullptr : steps(to.from);
      R* next = to.c + plan_.theta_at[0];
      Team::each(S_ * ld_, [&](i64 i) {
        store(next + i, (from ? load(from + i) : Vec<R>{}) - rate * load(g + i));
      });
    } else {
      const Vec<R> rate = splat(to.scale);
      Team::each(S_ * ld_,
                 [&](i64 i) { store(lambda_ + i, load(lambda_ + i) - rate * load(g + i)); });
    }
  }

  // The derivative of the support's values along lambda.
  void r_forward(R* values) const {
    const Term<R> terms[2] = {{gram_, gram_ld_, 1, lambda_, ld_, W, S_},
                              {of_query(), gram_ld_, 1, lambda_ + S_ * ld_, ld_, W, Q_}};
    multiply(terms, 2, {values, ld_}, S_, O_);
  }

  // lambda_0, into the sums over tasks.
  void add_gradient(R* sums) const {
    Term<R> terms[2] = {samples_term(support_, lambda_, S_),
                        samples_term(query_, lambda_ + S_ * ld_, Q_)};
    multiply(terms, 2, {sums, ld_, Finish::Add}, I_, O_);
    if (!has_bias()) return;
    for (Term<R>& term : terms) term.a = Team::ones(), term.a_m = term.a_k = 0;
    multiply(terms, 2, {sums + I_ * ld_, ld_, Finish::Add}, 1, O_);
  }

  // W_k itself, for who needs the gradient of the inputs.
  const R* weight(const R* theta) {
    const R* first = start_ + plan_.theta_at[0];
    if (theta == start_) return first;
    const Term<R> term = samples_term(support_, steps(theta), S_);
    multiply(&term, 1, plus(first, dense_), I_, O_);
    return dense_;
  }
  // lambda itself: to be put before it takes a step.
  const R* direction() const { return dense_ + I_ * ld_; }
  void put_direction() {
    const Term<R> terms[2] = {samples_term(support_, lambda_, S_),
                              samples_term(query_, lambda_ + S_ * ld_, Q_)};
    multiply(terms, 2, {dense_ + I_ * ld_, ld_}, I_, O_);
  }

 private:
  bool has_bias() const { return plan_.node(0).bias >= 0; }
  const R* steps(const R* theta) const { return theta + plan_.theta_at[0]; }  // C
  const R* of_query() const { return gram_ + Team::stride(S_); }              // X_s X_q^T

  static void multiply(const Term<R>* terms, int n, const Target<R>& target, i64 m, i64 columns) {
    product<typename Team::Lane>(terms, n, target, m, Team::vectors(columns));
  }
  Target<R> plus(const R* from, R* to) const {
    Target<R> target{to, ld_, Finish::Descend};
    target.from = from, target.scale = -1;
    return target;
  }
  Term<R> samples_term(const R* x, const R* g, i64 n) const { return {x, 1, I_, g, ld_, W, n}; }

  // [S][S, then Q, each in whole vectors]; with the bias's 1 at both ends, every product has 1 more.
  void put_gram() {
    Team::columns_of(columns_, gram_ld_, support_, S_, I_);
    Team::columns_of(columns_ + Team::stride(S_), gram_ld_, query_, Q_, I_);
    const Term<R> term{support_, I_, 1, columns_, gram_ld_, W, I_};
    multiply(&term, 1, {gram_, gram_ld_}, S_, gram_ld_);
    if (!has_bias()) return;
    Team::each(S_ * gram_ld_, [&](i64 i) { store(gram_ + i, load(gram_ + i) + splat(R(1))); });
  }

  void put_output(const R* x, i64 n, R* output) const {
    const R* weight = start_ + plan_.theta_at[0];
    const Term<R> term{x, I_, 1, weight, ld_, W, I_};
    Target<R> target{output, ld_};
    if (has_bias()) target.finish = Finish::Bias, target.row = weight + I_ * ld_;
    multiply(&term, 1, target, n, O_);
  }

  const Plan<Team>& plan_;
  i64 S_, Q_, I_, O_, ld_, gram_ld_;
  R *gram_, *output_, *lambda_, *columns_, *dense_;
  const R *start_ = nullptr, *support_ = nullptr, *query_ = nullptr;
};

}  // namespace fastmeta::FASTMETA_ISA
