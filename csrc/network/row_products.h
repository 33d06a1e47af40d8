// The products of a chunk of records with parameters, and the gradients of those.
//
// In a pack and in a blend a product takes all samples of the chunk at once. Alone, lanes are samples: a
// weight's element meets a vector of them, record by record; and its gradient, whose lanes are the matrix's
// columns, wants one of the two sides turned.
#pragma once

#include "row_records.h"

namespace fastmeta::FASTMETA_ISA {

template <class Team>
class RowProducts : protected RowRecords<Team> {
 protected:
  using Base = RowRecords<Team>;
  using typename Base::Plan, typename Base::R, typename Base::Rows, typename Base::V;
  using Base::adjoints, Base::at, Base::filled, Base::lanes_are_samples, Base::ld_, Base::plan_,
      Base::r_adjoints, Base::records_, Base::samples_, Base::slopes, Base::sum_rows, Base::turn_out,
      Base::values, Base::W;
  using Base::Base;
  using GradientTo = GradientTarget<R>;
  static constexpr bool lanes_are_blended = samples_a_row<Team> > 1;
  using RowLane = typename Rows::Lane;  // of a product of rows with rows
  using WeightLane = std::conditional_t<lanes_are_blended, Spread, RowLane>;

  const R* bias(int i, const R* theta) const {
    const int piece = plan_.bias_piece_of[i];
    return piece < 0 ? nullptr : theta + plan_.pieces[piece].at;
  }

  // A row or its slope times a weight.
  struct Factor {
    const R *x, *theta;
  };
  // to = the sum of products, plus a row.
  void multiply_forward(int i, R* to, const Factor* factors, int n, const R* bias) const {
    multiply<WeightLane>(to, factors, n, bias, {plan_.parts(i), plan_.in(i), plan_.out(i)},
                         {weight_at(i), input_step(i), output_step(i)}, Finish::Store);
  }
  // The adjoints of the inputs; of the products of g with the weight turned.
  void multiply_back(int i, R* to, const Factor* factors, int n) const {
    const bool is_first = plan_.step(i).first[0] && !plan_.step(plan_.step(i).a).adds_up;
    multiply<WeightLane>(to, factors, n, nullptr, {plan_.parts(i), plan_.out(i), plan_.in(i)},
                         {weight_at(i), output_step(i), input_step(i)}, is_first ? Finish::Store : Finish::Add);
  }

  // Values and adjoints that make a weight's gradient, or the two pairs that make its derivative.
  struct Pair {
    const R *x, *g;
  };
  void put_weight_gradient(int i, const Pair* pairs, int n, const GradientTo& to, bool* seen) {
    const Piece& p = plan_.pieces[plan_.piece_of[i]];
    each_outer(pairs, n, !plan_.takes_as_it_is(i), {plan_.parts(i), p.rows, p.columns},
               [&](const Term<R>* terms, int count) { put(plan_.piece_of[i], terms, count, to, seen); });
  }
  void put_bias_gradient(int i, const R* g, const GradientTo& to, bool* seen) {
    for (i64 part = 0; part < plan_.parts(i) && plan_.bias_piece_of[i] >= 0; ++part)
      put_row_gradient(plan_.bias_piece_of[i], g + part * plan_.out(i) * W, to, seen);
  }
  // Of numbers that all samples share, by their adjoints.
  void put_row_gradient(int piece, const R* g, const GradientTo& to, bool* seen) {
    const Piece& p = plan_.pieces[piece];
    for (i64 r = 0; r < p.rows; ++r, g += p.columns * W) {
      Term<R> sum{Team::ones(), 0, 0, g, ld_, W, records_};
      if constexpr (lanes_are_samples) {
        R* row = at(plan_.row_at);
        sum_rows(row, g, p.columns);
        sum = {Team::ones(), 0, 0, row, 0, W, 1};
      }
      put_part(piece, r, 1, &sum, 1, to, seen[piece]);
    }
    seen[piece] = true;
  }

  // ---- each sample's rows times a matrix [k][n] that all share -----------------------------------------

  // The matrix, its slope, and what has come to them so far: in a pack rows of the task, alone numbers side by
  // side.
  const R* matrix(int i) const { return lanes_are_samples ? apart(i, 0) : values(plan_.step(i).b); }
  const R* matrix_slope(int i) const { return lanes_are_samples ? apart(i, 1) : slopes(plan_.step(i).b); }
  R* matrix_adjoint(int i) const { return lanes_are_samples ? apart(i, 2) : adjoints(plan_.step(i).b); }
  R* matrix_r_adjoint(int i) const { return lanes_are_samples ? apart(i, 3) : r_adjoints(plan_.step(i).b); }

  void take_matrices() const {
    each_matrix([&](int i) { take_matrix(apart(i, 0), values(plan_.step(i).b), i); });
  }
  void take_matrix_slopes() const {
    each_matrix([&](int i) { take_matrix(apart(i, 1), slopes(plan_.step(i).b), i); });
  }
  void zero_matrix_adjoints() const {
    each_matrix([&](int i) {
      Team::zero(matrix_adjoint(i), plan_.matrix_size(i));
      Team::zero(matrix_r_adjoint(i), plan_.matrix_size(i));
    });
  }
  // kind: 0 of adjoints, 1 of their slopes.
  void put_matrix_adjoints(int kind) const {
    each_matrix([&](int i) {
      const int row = plan_.step(i).b;
      put_matrix(kind ? r_adjoints(row) : adjoints(row), kind ? matrix_r_adjoint(i) : matrix_adjoint(i), i);
    });
  }

  // to = the sum of products; Factor::theta is the matrix or its slope.
  void multiply_by_task(int i, R* to, const Factor* factors, int count) const {
    const auto of = plan_.task_product(i);
    multiply<RowLane>(to, factors, count, nullptr, {of.parts, of.k, of.n}, {0, of.k_step(), of.n_step()},
                      Finish::Store);
  }
  void multiply_back_by_task(int i, R* to, const Factor* factors, int count) const {
    const auto of = plan_.task_product(i);
    multiply<RowLane>(to, factors, count, nullptr, {of.parts, of.n, of.k}, {0, of.n_step(), of.k_step()},
                      plan_.step(i).first[0] ? Finish::Store : Finish::Add);
  }
  void add_to_matrix(int i, R* to, const Pair* pairs, int count) const {
    const auto of = plan_.task_product(i);
    const Target<R> target{to, of.row_step(), Finish::Add};
    const i64 rows = of.rows(), columns = of.columns();
    each_outer(pairs, count, of.turned, {of.parts, rows, columns}, [&](const Term<R>* terms, int all) {
      product<RowLane>(terms, all, target, rows, Rows::vectors(columns));
    });
  }

  void start(bool* seen) const { std::memset(seen, 0, sizeof(bool) * size_t(plan_.n_pieces)); }
  // What no step that is wanted has read has a gradient of 0.
  void finish_unseen(bool* seen, const GradientTo& to) const {
    for (int i = 0; i < plan_.n_pieces; ++i)
      if (!seen[i]) put(i, nullptr, 0, to, seen);
  }

 protected:
  // From one input to the next in a weight, and from one output to the next.
  i64 input_step(int i) const { return plan_.takes_as_it_is(i) ? row_step(i) : Team::element; }
  i64 output_step(int i) const { return plan_.takes_as_it_is(i) ? Team::element : row_step(i); }
  i64 weight_at(int i) const { return plan_.pieces[plan_.piece_of[i]].at; }

  // Rows of a piece's part of the target. All that comes after the first adds up.
  void put_part(int index, i64 first, i64 rows, const Term<R>* terms, int n, const GradientTo& to,
                bool seen) const {
    const Piece& p = plan_.pieces[index];
    const bool inner = to.finish == Finish::Step || to.finish == Finish::RateGrad;
    if (inner && !plan_.has_rate(p.parameter)) return;
    const i64 begin = p.at + first * Team::stride(p.columns);
    Target<R> target{to.c + begin, Team::stride(p.columns), to.finish};
    target.from = to.from ? to.from + begin : nullptr;
    target.scale = to.scale;
    target.rate_m = plan_.rate_row(p.parameter, p.columns);
    target.rate = to.rate ? to.rate + p.shared_at + first * target.rate_m : nullptr;
    if (seen && to.finish == Finish::Store) target.finish = Finish::Add;
    if (seen && (to.finish == Finish::Step || to.finish == Finish::Descend)) target.from = target.c;
    if constexpr (lanes_are_blended)
      product_over_groups(terms, n, target, rows, p.columns);
    else
      product<RowLane>(terms, n, target, rows, Team::vectors(p.columns));
  }

 private:
  template <class F>
  void each_matrix(F f) const {
    if constexpr (lanes_are_samples) plan_.each_task_product(f);
  }
  R* apart(int i, int kind) const { return at(plan_.matrix_at[i] + kind * plan_.matrix_size(i)); }
  // One lane of a row that the task has in all of them, and back.
  void take_matrix(R* to, const R* row, int i) const {
    const auto of = plan_.task_product(i);
    const i64 n = of.columns(), ld = of.row_step();
    for (i64 j = 0; j < of.rows(); ++j)
      for (i64 c = 0; c < ld; ++c) to[j * ld + c] = c < n ? row[(j * n + c) * W] : R(0);
  }
  void put_matrix(R* row, const R* from, int i) const {
    const auto of = plan_.task_product(i);
    const i64 n = of.columns(), ld = of.row_step();
    for (i64 j = 0; j < of.rows(); ++j)
      for (i64 c = 0; c < n; ++c) {
        R* to = row + (j * n + c) * W;
        store(to, load(to) + splat(from[j * ld + c]));
      }
  }
  i64 row_step(int i) const { return Team::stride(plan_.pieces[plan_.piece_of[i]].columns); }

  // Each sample has so many parts of `from` numbers, which become as many of `to` numbers.
  struct Shape {
    i64 parts, from, to;
  };
  // f(where a part begins, where that which becomes of it does)
  template <class F>
  void each_part(const Shape& shape, F f) const {
    for (i64 part = 0; part < shape.parts; ++part) f(part * shape.from * W, part * shape.to * W);
  }

  // Where a weight begins behind theta, and its steps along the sum's index and along the result's.
  struct Steps {
    i64 begin, k, n;
  };
  template <class Lane>
  void multiply(R* to, const Factor* factors, int count, const R* bias, const Shape& shape, Steps steps,
                Finish finish) const {
    if constexpr (lanes_are_samples) return multiply_alone(to, factors, count, bias, shape, steps, finish);
    each_part(shape, [&](i64 from, i64 onto) {
      Term<R> terms[2];
      for (int t = 0; t < count; ++t)
        terms[t] = {factors[t].x + from, ld_, W, factors[t].theta + steps.begin, steps.k, steps.n, shape.from};
      Target<R> target{to + onto, ld_, bias ? Finish::Bias : finish};
      target.row = bias;
      product<Lane>(terms, count, target, records_, shape.to);
    });
  }
  // Columns are the parts of a record, or the records where there are more of them.
  void multiply_alone(R* to, const Factor* factors, int count, const R* bias, const Shape& shape, Steps steps,
                      Finish finish) const {
    const bool over_parts = shape.parts > records_;
    const i64 columns = over_parts ? shape.parts : records_, others = over_parts ? records_ : shape.parts;
    const i64 x_part = shape.from * W, to_part = shape.to * W;
    for (i64 o = 0; o < others; ++o) {
      const i64 x_at = o * (over_parts ? ld_ : x_part), to_at = o * (over_parts ? ld_ : to_part);
      Term<R> terms[2];
      for (int t = 0; t < count; ++t)
        terms[t] = {factors[t].theta + steps.begin, steps.n, steps.k, factors[t].x + x_at, W,
                    over_parts ? x_part : ld_, shape.from};
      Target<R> target{to + to_at, W, finish};
      target.c_n = over_parts ? to_part : ld_;
      target.continues = bias != nullptr;
      for (i64 i = 0; bias && i < columns; ++i)
        for (i64 j = 0; j < shape.to; ++j) store(target.c + i * target.c_n + j * W, splat(bias[j]));
      product<Apart>(terms, count, target, shape.to, columns);
    }
  }

  // f(terms, how many) for matrices [from][to] that add up to the sum of the pairs' outer products, values by
  // adjoints or, turned, adjoints by values.
  template <class F>
  void each_outer(const Pair* pairs, int n, bool turned, const Shape& shape, F f) const {
    if (!turned) return each_gradient(pairs, n, shape, f);
    Pair others[2];
    for (int p = 0; p < n; ++p) others[p] = {pairs[p].g, pairs[p].x};
    each_gradient(others, n, shape, f);
  }
  template <class F>
  void each_gradient(const Pair* pairs, int n, const Shape& shape, F f) const {
    constexpr int most = 2 * Plan::most_records;
    Term<R> terms[most];
    int count = 0;
    each_part(shape, [&](i64 from, i64 onto) {
      for (int p = 0; p < n; ++p) {
        const R *a = pairs[p].x + from, *b = pairs[p].g + onto;
        if constexpr (lanes_are_samples)
          count += turned_terms(a, b, shape.to, at(plan_.turned_at[p]), terms + count);
        else
          terms[count++] = {a, W, ld_, b, ld_, W, records_};
      }
      if (!lanes_are_samples && count + n <= most) return;
      f(terms, count);
      count = 0;
    });
    if (count) f(terms, count);
  }
  // Of b's numbers, `columns`, the lanes become rows.
  int turned_terms(const R* a, const R* b, i64 columns, R* turned, Term<R>* terms) const {
    const i64 ld = Team::stride(columns);
    for (i64 r = 0; r < records_; ++r) {
      turn_out(turned + r * W * ld, b + r * ld_, columns, filled(r));
      terms[r] = {a + r * ld_, W, 1, turned + r * W * ld, ld, W, filled(r)};
    }
    return int(records_);
  }

  // A piece's part of the target.
  void put(int index, const Term<R>* terms, int n, const GradientTo& to, bool* seen) const {
    put_part(index, 0, plan_.pieces[index].rows, terms, n, to, seen[index]);
    seen[index] = true;
  }
};

}  // namespace fastmeta::FASTMETA_ISA
