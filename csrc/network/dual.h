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
//
// Products of samples far from the origin are large and alike, and C cancels them. So they are taken
// about c, the mean of the support. With x_j = c + x'_j
//
//   sum_j C_j (x_j . x) = sum_j C_j (x'_j . x') + (c . x) sum_j C_j + sum_j (c . x'_j) C_j
//
// and the two sums on the right are kept behind C, and behind L_s, as rows of their own; the first one
// twice, since (c . x), of which all outputs share the rounding, comes in two pieces.
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
        center_(scratch + plan.center_at), columns_(scratch + plan.dual_columns_at),
        gram_(scratch + plan.gram_at), output_(scratch + plan.dual_output_at),
        lambda_(scratch + plan.dual_lambda_at), dense_(scratch + plan.dense_at) {}

  // The samples of a slice, and theta_0: what all steps have in common.
  void take(const R* theta, Slice slice) {
    start_ = theta;
    support_ = plan_.loop.support.x + slice.first * S_ * I_;
    query_ = plan_.loop.query.x + slice.first * Q_ * I_;
    put_center();
    put_gram();
    put_output(support_, S_, output_);
    put_output(query_, Q_, output_ + S_ * ld_);
  }

  // values = X W_k^T + b_k of the support or the query, at theta_k
  void forward(const R* theta, R* values, bool queries) const {
    const R* output = queries ? output_ + S_ * ld_ : output_;
    const i64 rows = queries ? Q_ : S_;
    if (theta == start_) return Team::copy(values, output, rows * ld_);
    const Term<R> term{gram_ + first_column(queries), 1, gram_ld_, steps(theta), ld_, W,
                       S_ + dual_sums};
    multiply(&term, 1, minus(output, R(-1), values), rows, O_);
  }

  // What becomes of g: the first entry of lambda, an inner step, or a step of the recursion.
  void take_gradient(const R* g, const GradientTo& to) {
    if (to.finish == Finish::Store) {
      Team::zero(lambda_, (S_ + dual_sums) * ld_);
      Team::copy(lambda_of_query(), g, Q_ * ld_);
      subtract_sums(lambda_, g, Q_, true, R(-1));
    } else if (to.finish == Finish::Step) {
      R* next = to.c + plan_.theta_at[0];
      if (to.from == start_)
        Team::zero(next, (S_ + dual_sums) * ld_);
      else
        Team::copy(next, steps(to.from), (S_ + dual_sums) * ld_);
      subtract(next, g, to.rate[plan_.shared_at[0]]);
    } else {
      subtract(lambda_, g, to.scale);
    }
  }

  // The derivative of the support's values along lambda.
  void r_forward(R* values) const {
    const Term<R> terms[2] = {
        {gram_, 1, gram_ld_, lambda_, ld_, W, S_ + dual_sums},
        {gram_ + first_column(true), gram_ld_, 1, lambda_of_query(), ld_, W, Q_}};
    multiply(terms, 2, {values, ld_}, S_, O_);
  }

  // lambda_0, into the sums over tasks.
  void add_gradient(R* sums) const {
    Term<R> terms[2] = {samples_term(support_, lambda_, S_),
                        samples_term(query_, lambda_of_query(), Q_)};
    multiply(terms, 2, {sums, ld_, Finish::Add}, I_, O_);
    if (!has_bias()) return;
    R* bias = sums + I_ * ld_;
    const R* total = lambda_ + S_ * ld_;
    Team::each(ld_, [&](i64 i) { store(bias + i, load(bias + i) + load(total + i)); });
  }

  // W_k itself, for who needs the gradient of the inputs.
  const R* weight(const R* theta) {
    const R* first = start_ + plan_.theta_at[0];
    if (theta == start_) return first;
    const Term<R> term = samples_term(support_, steps(theta), S_);
    multiply(&term, 1, minus(first, R(-1), dense_), I_, O_);
    return dense_;
  }
  // lambda itself: to be put before it takes a step.
  const R* direction() const { return dense_ + I_ * ld_; }
  void put_direction() {
    const Term<R> terms[2] = {samples_term(support_, lambda_, S_),
                              samples_term(query_, lambda_of_query(), Q_)};
    multiply(terms, 2, {dense_ + I_ * ld_, ld_}, I_, O_);
  }

 private:
  bool has_bias() const { return plan_.node(0).bias >= 0; }
  const R* steps(const R* theta) const { return theta + plan_.theta_at[0]; }  // C
  R* lambda_of_query() const { return lambda_ + (S_ + dual_sums) * ld_; }  // L_q
  i64 first_column(bool queries) const { return queries ? Team::stride(S_) : 0; }

  static void multiply(const Term<R>* terms, int n, const Target<R>& target, i64 m, i64 columns) {
    product<typename Team::Lane>(terms, n, target, m, Team::vectors(columns));
  }
  // Over the inputs in sums of 32: what is rounded here is wrong alike at every step, where weights
  // that are formed are rounded anew.
  static void multiply_in_parts(Term<R> term, Target<R> target, i64 m, i64 columns) {
    constexpr i64 part = 32;
    for (i64 left = term.depth; left > 0; left -= part) {
      term.depth = smaller(part, left);
      multiply(&term, 1, target, m, columns);
      term.a += part * term.a_k, term.b += part * term.b_k;
      target.finish = Finish::Add;
    }
  }
  // to = from - scale sums
  Target<R> minus(const R* from, R scale, R* to) const {
    Target<R> target{to, ld_, Finish::Descend};
    target.from = from, target.scale = scale;
    return target;
  }
  Term<R> samples_term(const R* x, const R* g, i64 n) const { return {x, 1, I_, g, ld_, W, n}; }

  // c -= scale g, for C or L_s with its two sums
  void subtract(R* c, const R* g, R scale) const {
    Team::each(S_ * ld_, [&](i64 i) { store(c + i, load(c + i) - splat(scale) * load(g + i)); });
    subtract_sums(c, g, S_, false, scale);
  }
  void subtract_sums(R* c, const R* g, i64 n, bool queries, R scale) const {
    const R* by = gram_ + (S_ + 1) * gram_ld_ + first_column(queries);
    const Term<R> term{by, 2 * gram_ld_, 1, g, ld_, W, n};
    R* to = c + S_ * ld_;
    multiply(&term, 1, minus(to, scale, to), 2, O_);
    Team::copy(to + 2 * ld_, to, ld_);
  }

  void put_center() {
    for (i64 i = 0; i < I_; ++i) center_[i] = support_[i];
    for (i64 s = 1; s < S_; ++s)
      for (i64 i = 0; i < I_; ++i) center_[i] += support_[s * I_ + i];
    for (i64 i = 0; i < I_; ++i) center_[i] /= R(S_);
  }

  // Columns: the support's samples x_j, then the query's, in whole vectors.
  // Rows: (x_s - c) . (x_j - c) of every support sample s, then what meets the sums: c . x_j (and the
  // bias's 1), 1, and what the first of them lost by rounding; last c . (x_j - c), of which the second sum
  // is made.
  void put_gram() {
    Team::columns_of(columns_, gram_ld_, support_, S_, I_, center_);
    Team::columns_of(columns_ + first_column(true), gram_ld_, query_, Q_, I_, center_);
    multiply_in_parts({columns_, 1, gram_ld_, columns_, gram_ld_, W, I_}, {gram_, gram_ld_}, S_,
                      gram_ld_);
    R* along = gram_ + S_ * gram_ld_;
    double squares = has_bias();
    for (i64 i = 0; i < I_; ++i) squares += double(center_[i]) * double(center_[i]);
    for (i64 j = 0; j < gram_ld_; j += W) put_along(along + j, squares, columns_ + j);
  }
  void put_along(R* to, double squares, const R* columns) const {
    double within[W] = {};
    for (i64 i = 0; i < I_; ++i)
      for (i64 j = 0; j < W; ++j)
        within[j] += double(center_[i]) * double(columns[i * gram_ld_ + j]);
    for (i64 j = 0; j < W; ++j) {
      const double all = squares + within[j];
      to[j] = R(all);
      to[gram_ld_ + j] = 1;
      to[2 * gram_ld_ + j] = R(all - double(to[j]));
      to[3 * gram_ld_ + j] = R(within[j]);
    }
  }

  void put_output(const R* x, i64 n, R* output) const {
    const R* weight = start_ + plan_.theta_at[0];
    Target<R> target{output, ld_};
    if (has_bias()) target.finish = Finish::Bias, target.row = weight + I_ * ld_;
    multiply_in_parts({x, I_, 1, weight, ld_, W, I_}, target, n, O_);
  }

  const Plan<Team>& plan_;
  i64 S_, Q_, I_, O_, ld_, gram_ld_;
  R *center_, *columns_, *gram_, *output_, *lambda_, *dense_;
  const R *start_ = nullptr, *support_ = nullptr, *query_ = nullptr;
};

}  // namespace fastmeta::FASTMETA_ISA
