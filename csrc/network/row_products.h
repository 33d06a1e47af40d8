// The products of a chunk of records with parameters, and the gradients of those.
//
// In a pack a product takes all samples of the chunk at once. Alone, lanes are samples: a weight's element
// meets a vector of them, record by record; and its gradient, whose lanes are the matrix's columns, wants
// one of the two sides turned.
#pragma once

#include "row_records.h"

namespace fastmeta::FASTMETA_ISA {

template <class Team>
class RowProducts : protected RowRecords<Team> {
 protected:
  using Base = RowRecords<Team>;
  using typename Base::Plan, typename Base::R, typename Base::V;
  using Base::adjoints, Base::at, Base::filled, Base::lanes_are_samples, Base::ld_, Base::plan_,
      Base::r_adjoints, Base::records_, Base::rows_, Base::slopes, Base::sum_rows, Base::turn_out,
      Base::values, Base::W;
  using Base::Base;
  using GradientTo = GradientTarget<R>;
  using Lane = typename Team::Lane;

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
    each_part(i, to, factors, n, plan_.in(i), plan_.out(i), [&](R* part, const Factor* of_part) {
      multiply(i, part, of_part, n, bias, {input_step(i), output_step(i)}, plan_.in(i), plan_.out(i),
               Finish::Store);
    });
  }
  // The adjoints of the inputs; of the products of g with the weight turned.
  void multiply_back(int i, R* to, const Factor* factors, int n) const {
    const bool is_first = plan_.step(i).first[0] && !plan_.is_of_task(plan_.step(i).a);
    const Finish finish = is_first ? Finish::Store : Finish::Add;
    each_part(i, to, factors, n, plan_.out(i), plan_.in(i), [&](R* part, const Factor* of_part) {
      multiply(i, part, of_part, n, nullptr, {output_step(i), input_step(i)}, plan_.out(i), plan_.in(i),
               finish);
    });
  }

  // Values and adjoints that make a weight's gradient, or the two pairs that make its derivative.
  struct Pair {
    const R *x, *g;
  };
  void put_weight_gradient(int i, const Pair* pairs, int n, const GradientTo& to, bool* seen) {
    for (i64 part = 0; part < plan_.parts(i); ++part) {
      Term<R> terms[2 * Plan::most_records];
      int count = 0;
      for (int p = 0; p < n; ++p) {
        const Pair of_part{pairs[p].x + part * plan_.in(i) * W, pairs[p].g + part * plan_.out(i) * W};
        if constexpr (lanes_are_samples)
          count += turned_terms(i, of_part, at(plan_.turned_at[p]), terms + count);
        else
          terms[count++] = plan_.takes_as_it_is(i) ? weight_term(of_part.x, of_part.g)
                                                   : weight_term(of_part.g, of_part.x);
      }
      put(plan_.piece_of[i], terms, count, to, seen);
    }
  }
  void put_bias_gradient(int i, const R* g, const GradientTo& to, bool* seen) {
    for (i64 part = 0; part < plan_.parts(i) && plan_.bias_piece_of[i] >= 0; ++part)
      put_row_gradient(plan_.bias_piece_of[i], g + part * plan_.out(i) * W, to, seen);
  }
  // Of a row that all samples share, by its adjoints.
  void put_row_gradient(int piece, const R* g, const GradientTo& to, bool* seen) {
    if constexpr (lanes_are_samples) {
      R* row = at(plan_.row_at);
      sum_rows(row, g, plan_.pieces[piece].columns);
      const Term<R> sum{Team::ones(), 0, 0, row, 0, W, 1};
      put(piece, &sum, 1, to, seen);
    } else {
      const Term<R> sum{Team::ones(), 0, 0, g, ld_, W, rows_};
      put(piece, &sum, 1, to, seen);
    }
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
    const auto [parts, k, n] = plan_.task_product(i);
    const i64 down = matrix_step(n), across = Team::element;
    for (i64 part = 0; part < parts; ++part)
      multiply_by_matrix(to + part * n * W, factors, count, part * k * W, {down, across}, k, n, Finish::Store);
  }
  void multiply_back_by_task(int i, R* to, const Factor* factors, int count) const {
    const auto [parts, k, n] = plan_.task_product(i);
    const i64 down = matrix_step(n), across = Team::element;
    const Finish finish = plan_.step(i).first[0] ? Finish::Store : Finish::Add;
    for (i64 part = 0; part < parts; ++part)
      multiply_by_matrix(to + part * k * W, factors, count, part * n * W, {across, down}, n, k, finish);
  }
  void add_to_matrix(int i, R* to, const Pair* pairs, int count) const {
    const auto [parts, k, n] = plan_.task_product(i);
    for (i64 part = 0; part < parts; ++part) {
      Term<R> terms[2 * Plan::most_records];
      int all = 0;
      for (int p = 0; p < count; ++p) {
        const R *x = pairs[p].x + part * k * W, *g = pairs[p].g + part * n * W;
        if constexpr (lanes_are_samples)
          all += turned_terms(x, g, n, at(plan_.turned_at[p]), terms + all);
        else
          terms[all++] = weight_term(x, g);
      }
      product<Lane>(terms, all, Target<R>{to, matrix_step(n), Finish::Add}, k, Team::vectors(n));
    }
  }

  void start(bool* seen) const { std::memset(seen, 0, sizeof(bool) * size_t(plan_.n_pieces)); }
  // What no step that is wanted has read has a gradient of 0.
  void finish_unseen(bool* seen, const GradientTo& to) const {
    for (int i = 0; i < plan_.n_pieces; ++i)
      if (!seen[i]) put(i, nullptr, 0, to, seen);
  }

 private:
  struct Steps {
    i64 k, n;  // of the sum's index, and of the result's, in the weight
  };
  template <class F>
  void each_matrix(F f) const {
    if constexpr (lanes_are_samples) plan_.each_task_product(f);
  }
  R* apart(int i, int kind) const { return at(plan_.matrix_at[i] + kind * plan_.matrix_size(i)); }
  static i64 matrix_step(i64 n) { return Team::stride(n); }
  // One lane of a row that the task has in all of them, and back.
  void take_matrix(R* to, const R* row, int i) const {
    const auto [parts, k, n] = plan_.task_product(i);
    for (i64 j = 0; j < k; ++j)
      for (i64 c = 0; c < matrix_step(n); ++c) to[j * matrix_step(n) + c] = c < n ? row[(j * n + c) * W] : R(0);
  }
  void put_matrix(R* row, const R* from, int i) const {
    const auto [parts, k, n] = plan_.task_product(i);
    for (i64 j = 0; j < k; ++j)
      for (i64 c = 0; c < n; ++c) {
        R* to = row + (j * n + c) * W;
        store(to, load(to) + splat(from[j * matrix_step(n) + c]));
      }
  }
  void multiply_by_matrix(R* to, const Factor* factors, int count, i64 begin, Steps steps, i64 depth, i64 width,
                          Finish finish) const {
    Term<R> terms[2];
    if constexpr (lanes_are_samples) {
      for (i64 r = 0; r < records_; ++r) {
        for (int t = 0; t < count; ++t)
          terms[t] = {factors[t].theta, steps.n, steps.k, factors[t].x + begin + r * ld_, W, W, depth};
        product<Lane>(terms, count, Target<R>{to + r * ld_, W, finish}, width, 1);
      }
    } else {
      for (int t = 0; t < count; ++t)
        terms[t] = {factors[t].x + begin, ld_, W, factors[t].theta, steps.k, steps.n, depth};
      product<Lane>(terms, count, Target<R>{to, ld_, finish}, rows_, width);
    }
  }

  // From one input to the next in a weight, and from one output to the next.
  i64 input_step(int i) const { return plan_.takes_as_it_is(i) ? row_step(i) : Team::element; }
  i64 output_step(int i) const { return plan_.takes_as_it_is(i) ? Team::element : row_step(i); }
  i64 row_step(int i) const { return Team::stride(plan_.pieces[plan_.piece_of[i]].columns); }

  // f(where a part of the result begins, the factors of that part)
  template <class F>
  void each_part(int i, R* to, const Factor* factors, int n, i64 from_width, i64 to_width, F f) const {
    for (i64 part = 0; part < plan_.parts(i); ++part) {
      Factor of_part[2];
      for (int t = 0; t < n; ++t) of_part[t] = {factors[t].x + part * from_width * W, factors[t].theta};
      f(to + part * to_width * W, of_part);
    }
  }

  void multiply(int i, R* to, const Factor* factors, int count, const R* bias, Steps steps, i64 depth,
                i64 width, Finish finish) const {
    const i64 weight = plan_.pieces[plan_.piece_of[i]].at;
    Term<R> terms[2];
    if constexpr (lanes_are_samples) {
      for (i64 r = 0; r < records_; ++r) {
        for (int t = 0; t < count; ++t)
          terms[t] = {factors[t].theta + weight, steps.n, steps.k, factors[t].x + r * ld_, W, W, depth};
        Target<R> target{to + r * ld_, W, finish};
        target.continues = bias != nullptr;
        for (i64 j = 0; bias && j < width; ++j) store(target.c + j * W, splat(bias[j]));
        product<Lane>(terms, count, target, width, 1);
      }
    } else {
      for (int t = 0; t < count; ++t)
        terms[t] = {factors[t].x, ld_, W, factors[t].theta + weight, steps.k, steps.n, depth};
      Target<R> target{to, ld_, bias ? Finish::Bias : finish};
      target.row = bias;
      product<Lane>(terms, count, target, rows_, width);
    }
  }

  // [a's numbers][b's numbers], summed over samples.
  Term<R> weight_term(const R* a, const R* b) const { return {a, W, ld_, b, ld_, W, rows_}; }
  int turned_terms(int i, const Pair& pair, R* turned, Term<R>* terms) const {
    const bool as_it_is = plan_.takes_as_it_is(i);
    const i64 columns = plan_.pieces[plan_.piece_of[i]].columns;
    return as_it_is ? turned_terms(pair.x, pair.g, columns, turned, terms)
                    : turned_terms(pair.g, pair.x, columns, turned, terms);
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

  // A piece's part of the target. All that comes after the first adds up.
  void put(int index, const Term<R>* terms, int n, const GradientTo& to, bool* seen) const {
    const Piece& p = plan_.pieces[index];
    const bool inner = to.finish == Finish::Step || to.finish == Finish::RateGrad;
    if (inner && !plan_.has_rate(p.parameter)) return;
    Target<R> target{to.c + p.at, Team::stride(p.columns), to.finish};
    target.from = to.from ? to.from + p.at : nullptr;
    target.scale = to.scale;
    target.rate = to.rate ? to.rate + p.shared_at : nullptr;
    target.rate_m = plan_.rate_row(p.parameter, p.columns);
    if (seen[index]) {
      if (to.finish == Finish::Store) target.finish = Finish::Add;
      if (to.finish == Finish::Step || to.finish == Finish::Descend) target.from = target.c;
    }
    seen[index] = true;
    product<Lane>(terms, n, target, p.rows, Team::vectors(p.columns));
  }
};

}  // namespace fastmeta::FASTMETA_ISA
