// The passes over a forward that was written as arithmetic on rows: forward, backward, and the R-pass.
//
// Products take the samples of a chunk together. What lies between them is each sample's own and runs on the
// row machine: on dual numbers, whose slopes run along the direction, both passes are the R-pass. What samples
// share comes before all of them in a forward, and after all of them in a backward.
#pragma once

#include "row_sparse.h"

namespace fastmeta::FASTMETA_ISA {

template <class Team>
class RowPasses : RowSparse<Team> {
  using Base = RowSparse<Team>;
  using typename Base::Factor, typename Base::Pair;
  using Base::add_to_matrix, Base::adjoints, Base::at, Base::bias, Base::chunks, Base::each_chunk, Base::filled,
      Base::finish_unseen, Base::first_, Base::ld_, Base::matrix, Base::matrix_adjoint, Base::matrix_r_adjoint,
      Base::matrix_slope, Base::multiply_back, Base::multiply_back_by_task, Base::multiply_by_task,
      Base::multiply_forward, Base::n_, Base::once, Base::plan_, Base::put_bias_gradient, Base::put_matrix_adjoints,
      Base::first_row, Base::put_row_gradient, Base::put_rows, Base::put_weight_gradient, Base::r_adjoints,
      Base::records_, Base::rows_of_chunk, Base::samples_, Base::slopes, Base::spread, Base::spread_piece,
      Base::start, Base::take_matrices, Base::take_matrix_slopes,
      Base::take_rows, Base::values, Base::values_, Base::W, Base::zero_matrix_adjoints, Base::zero_rows;

 public:
  using R = typename Team::Real;
  using V = Vec<R>;
  using Plan = RowPlan<Team>;
  using Rows = RowTeam<Team>;
  using GradientTo = GradientTarget<R>;
  static constexpr bool may_replace_direction = false;

  RowPasses(const Plan& plan, R* scratch, const Crew&)
      : Base(plan, scratch),
        head_(plan.loop.network, plan.outputs(),
              {at(plan.y_at), at(plan.coefficient_at), at(plan.curvature_at), at(plan.program_at)}) {}

  void take(const Samples<R>& samples, Slice slice) {
    const i64 I = plan_.sample_size();
    Rows::gather(at(plan_.x_at), samples.x, samples.n * I, I, 1, samples.n, I, slice);
    if constexpr (samples_a_row<Team> > 1) Rows::repeat_last(at(plan_.x_at), samples.n, I);
    take_made(samples, slice, at(plan_.x_at), nullptr);
  }
  // Samples that were made of those: [n][stride of their width], and where their derivative will be.
  void take_made(const Samples<R>& samples, Slice slice, const R* x, const R* rx) {
    n_ = samples.n;
    x_ = x, rx_ = rx;
    head_.take(samples, slice);
  }

  void scale_coefficients(V factor) { head_.scale_coefficients(factor); }

  // keep: where the records go for a later resume(), or nullptr.
  void forward(const R* theta, R* keep) {
    theta_ = theta;
    values_ = keep ? keep : at(plan_.values_at);
    run_of_task([&] { run_steps(); });
    take_matrices();
    each_chunk([&] {
      run_forward();
      take_rows(at(plan_.output_at), values(last()), plan_.outputs());
    });
  }

  // The passes that follow read the values, or write the same ones once more where a forward goes in chunks.
  void resume(const R* kept, const R* theta) {
    theta_ = theta;
    values_ = const_cast<R*>(kept);
    take_matrices();
    each_chunk([&] {
      if (chunks() == 1) find_sparse();
      take_rows(at(plan_.output_at), values(last()), plan_.outputs());
    });
  }

  const R* predictions() const { return at(plan_.output_at); }
  V loss() const {
    if constexpr (samples_a_row<Team> > 1) return Rows::over_samples(head_.loss(predictions()));
    return head_.loss(predictions());
  }

  void loss_gradient() { head_.gradient(predictions(), at(plan_.g_at)); }
  void zero_gradient() { head_.zero(at(plan_.g_at)); }
  void add_gradient(const R* outside, Slice slice) {
    head_.add(at(plan_.g_at), at(plan_.rg_at), outside, slice);
  }

  // Of parameters that adapt where lowest > 0, else of all.
  void backward(const R* theta, int lowest, const GradientTo& target, bool into_input) {
    theta_ = theta;
    reach(lowest, into_input);
    start(seen_[0]);
    const auto gradients = [&](int i) { put_gradient(i, target, seen_[0]); };
    const auto below = [&](int i) { put_input_adjoint(i); };
    zero_of_task<Plain>();
    each_chunk([&] {
      if (chunks() > 1) run_forward();
      put_rows(adjoints(last()), at(plan_.g_at), plan_.outputs());
      run_backward<Plain>(gradients, below);
      if (into_input) take_input(at(plan_.input_g_at), adjoints(0));
    });
    sum_of_task<Plain>();
    run_of_task([&] { run_backward<Plain>(gradients, below); });
    finish_unseen(seen_[0], target);
  }

  // As Passes::r_pass.
  void r_pass(const R* theta, const R* v, int lowest, const GradientTo& target,
              const GradientTo* gradient, bool into_input) {
    theta_ = theta;
    v_ = v;
    reach(lowest, into_input);
    start(seen_[0]);
    start(seen_[1]);
    const auto gradients = [&](int i) {
      if (gradient) put_gradient(i, *gradient, seen_[1]);
      put_r_gradient(i, target);
    };
    const auto below = [&](int i) {
      put_r_input_adjoint(i);
      put_input_adjoint(i);
    };
    run_of_task([&] { run_r_steps(); });
    take_matrix_slopes();
    zero_of_task<Dual>();
    each_chunk([&] {
      if (chunks() > 1) run_forward();
      run_r_forward();
      r_gradient_of_loss();
      run_backward<Dual>(gradients, below);
      if (into_input) take_input(at(plan_.r_input_g_at), r_adjoints(0));
      if (into_input && rx_) take_input(at(plan_.input_g_at), adjoints(0));
    });
    sum_of_task<Dual>();
    run_of_task([&] { run_backward<Dual>(gradients, below); });
    finish_unseen(seen_[0], target);
    if (gradient) finish_unseen(seen_[1], *gradient);
  }

  const R* input_gradient_of_loss() { return at(plan_.input_g_at); }
  const R* r_input_gradient_of_loss() { return at(plan_.r_input_g_at); }

  // A gradient of the inputs, in team layout, into PyTorch's [T, n, I].
  void put_input(R* out, const R* gradient, Slice slice) const {
    const i64 I = plan_.sample_size();
    Rows::scatter(out, gradient, n_ * I, I, 1, n_, I, slice);
  }

 private:
  using Plain = PlainNumbers<R>;
  using Dual = DualNumbers<R>;
  using Slopes = SlopeNumbers<R>;  // the values are there in every R-pass

  int last() const { return plan_.last(); }
  void reach(int lowest, bool into_input) {
    const Reach far = into_input ? Reach::Input : lowest > 0 ? Reach::Adapted : Reach::Parameters;
    wanted_ = plan_.reaches[int(far)];
  }
  void take_input(R* to, const R* from) const {
    if (wanted_[0])
      take_rows(to, from, plan_.sample_size());
    else  // nothing depends on it
      zero_rows(to, plan_.sample_size());
  }
  void r_gradient_of_loss() {
    R *ry = at(plan_.r_output_at), *g = at(plan_.g_at), *rg = at(plan_.rg_at);
    const i64 O = plan_.outputs(), begin = first_row() * Rows::stride(O);
    take_rows(ry, slopes(last()), O);
    head_.part(first_row(), rows_of_chunk()).r_gradient(predictions() + begin, ry + begin, rg + begin);
    put_rows(adjoints(last()), g, O);
    put_rows(r_adjoints(last()), rg, O);
  }

  // ---- the program ----------------------------------------------------------------------------

  // f() on the one record of what samples share, of which each sample has the same.
  template <class F>
  void run_of_task(F f) {
    if (!plan_.task_size) return;
    in_task_ = true;
    once(f);
    in_task_ = false;
  }
  bool is_here(int i) const { return plan_.is_of_task(i) == in_task_; }

  using PlainRow = typename Plain::Row;
  using DualRow = typename Dual::Row;
  // Where a record begins among those of values and slopes, or of adjoints and their slopes.
  void point_to(PlainRow& rows, i64 offset) const { rows = {values_ + offset}; }
  void point_to(DualRow& rows, i64 offset) const { rows = {values_ + offset, at(plan_.slopes_at) + offset}; }
  void point_to_adjoints(PlainRow& rows, i64 offset) const { rows = {at(plan_.adjoints_at) + offset}; }
  void point_to_adjoints(DualRow& rows, i64 offset) const {
    rows = {at(plan_.adjoints_at) + offset, at(plan_.r_adjoints_at) + offset};
  }
  void point_to_partial(PlainRow& rows) const { rows = {at(plan_.partial_at)}; }
  void point_to_partial(DualRow& rows) const {
    rows = {at(plan_.partial_at), at(plan_.partial_at) + plan_.task_size};
  }
  // f(machine) for each record.
  template <class Numbers, class F>
  void each_record(F f) const {
    for (i64 r = 0; r < records_; ++r) {
      typename Numbers::Row rows, adjoint_rows, task_rows, task_adjoints;
      point_to(rows, plan_.task_size + r * ld_);
      point_to_adjoints(adjoint_rows, plan_.task_size + r * ld_);
      point_to(task_rows, 0);
      point_to_adjoints(task_adjoints, 0);
      if (is_partial(r)) point_to_partial(task_adjoints);
      f(RowMachine<Numbers>{plan_.program, wanted_, rows, adjoint_rows, task_rows, task_adjoints});
    }
  }
  // Lanes without a sample have adjoints of their own, which may be anything.
  bool is_partial(i64 record) const {
    return Plan::lanes_are_samples && !in_task_ && filled(record) < W;
  }
  template <class Numbers>
  void zero_of_task() const {
    zero_matrix_adjoints();
    R* const places[2] = {at(plan_.adjoints_at), at(plan_.r_adjoints_at)};
    for (int kind = 0; kind < kinds<Numbers>; ++kind) {
      for (int row = 1; row <= last(); ++row)
        if (plan_.step(row).adds_up) Team::zero(places[kind] + plan_.at(row), plan_.width(row) * W);
      each_partial(kind, [&](R*, R* partial) { store(partial, V{}); });
    }
  }
  // Alone: over the lanes, each of which has the sum then.
  template <class Numbers>
  void sum_of_task() const {
    const Mask<R> present = iota<R>() < R(n_ % W);
    for (int kind = 0; kind < kinds<Numbers>; ++kind) {
      each_partial(kind, [&](R* sum, const R* partial) {
        store(sum, splat(horizontal_sum<R>(load(sum) + select(present, load(partial), V{}))));
      });
      put_matrix_adjoints(kind);
    }
  }
  template <class Numbers>
  static constexpr int kinds = std::is_same_v<Numbers, Dual> ? 2 : 1;  // of adjoints
  // f(a number's adjoint, the part that partial records have): of rows that samples bring adjoints to.
  template <class F>
  void each_partial(int kind, F f) const {
    if constexpr (Plan::lanes_are_samples) {
      R* const whole = at(kind ? plan_.r_adjoints_at : plan_.adjoints_at);
      R* const partial = at(plan_.partial_at) + kind * plan_.task_size;
      plan_.each_gathered([&](int row) {
        const i64 end = plan_.at(row) + plan_.width(row) * W;
        for (i64 j = plan_.at(row); j < end; j += W) f(whole + j, partial + j);
      });
    }
  }

  // Steps in their order: f(i) for one that takes all records, and what lies between two of them record by
  // record.
  template <class Numbers, class F>
  void each_step(F f) const {
    for (int i = 1; i <= last();) {
      if (!is_here(i) || plan_.takes_chunks(i)) {
        if (is_here(i)) f(i);
        ++i;
        continue;
      }
      int end = i;
      while (end <= last() && !(is_here(end) && plan_.takes_chunks(end))) ++end;
      each_record<Numbers>([&](const auto& machine) {
        for (int k = i; k < end; ++k)
          if (is_here(k)) machine.forward(k);
      });
      i = end;
    }
  }

  void find_sparse() {
    if (rx_) this->forget_numbers();
    else this->find_numbers();
  }
  void run_forward() {
    put_rows(values(0), x_, plan_.sample_size());
    find_sparse();
    run_steps();
  }
  void run_steps() {
    each_step<Plain>([&](int i) {
      const RowStep& s = plan_.step(i);
      if (s.op == RowOp::Parameter) return spread_piece(values(i), theta_, piece(i));
      if (s.op == RowOp::Product) {
        const Factor factor{values(s.a), matrix(i)};
        return multiply_by_task(i, values(i), &factor, 1);
      }
      const Factor factor{values(s.a), theta_};
      if (this->looks_up(i)) return this->look_up(i, values(i), &factor, 1, bias(i, theta_));
      multiply_forward(i, values(i), &factor, 1, bias(i, theta_));
    });
  }

  void run_r_forward() {
    if (rx_) put_rows(slopes(0), rx_, plan_.sample_size());
    else spread(slopes(0), nullptr, plan_.sample_size());
    run_r_steps();
  }
  void run_r_steps() {
    each_step<Slopes>([&](int i) {
      const RowStep& s = plan_.step(i);
      if (s.op == RowOp::Product) return multiply_r_by_task(i);
      const bool adapts = plan_.has_rate(s.b);
      if (s.op == RowOp::Parameter)
        return spread_piece(slopes(i), adapts ? v_ : nullptr, piece(i));
      Factor factors[2];
      int n = 0;
      if (has_slope(s.a)) factors[n++] = {slopes(s.a), theta_};
      if (adapts) factors[n++] = {values(s.a), v_};
      const R* slope = plan_.has_rate(s.c) ? bias(i, v_) : nullptr;
      if (this->looks_up(i)) return this->look_up(i, slopes(i), factors, n, slope);
      multiply_forward(i, slopes(i), factors, n, slope);
    });
  }
  void multiply_r_by_task(int i) const {
    const RowStep& s = plan_.step(i);
    Factor factors[2];
    int n = 0;
    if (has_slope(s.a)) factors[n++] = {slopes(s.a), matrix(i)};
    if (has_slope(s.b)) factors[n++] = {values(s.a), matrix_slope(i)};
    multiply_by_task(i, slopes(i), factors, n);
  }
  // Whether it can have one at all: it depends on a parameter that adapts.
  bool has_slope(int row) const { return plan_.reaches[int(Reach::Adapted)][row]; }
  const Piece& piece(int i) const { return plan_.pieces[plan_.piece_of[i]]; }

  // The steps that are wanted, from the last one on; the adjoint of the last one is there.
  template <class Numbers, class Gradients, class Below>
  void run_backward(Gradients gradients, Below below) const {
    for (int i = last(); i >= 1;) {
      if (!is_here(i) || plan_.takes_chunks(i)) {
        if (is_here(i) && wanted_[i]) back_through<Numbers>(i, gradients, below);
        --i;
        continue;
      }
      int end = i;
      while (end >= 1 && !(is_here(end) && plan_.takes_chunks(end))) --end;
      each_record<Numbers>([&](const auto& machine) {
        for (int k = i; k > end; --k)
          if (is_here(k) && wanted_[k]) machine.backward(k);
      });
      i = end;
    }
  }
  template <class Numbers, class Gradients, class Below>
  void back_through(int i, Gradients gradients, Below below) const {
    const RowStep& s = plan_.step(i);
    if (s.op == RowOp::Product) return put_adjoints_by_task<Numbers>(i);
    gradients(i);
    if (s.op == RowOp::Linear && wanted_[s.a]) below(i);
  }

  // Of a product with a matrix that samples share.
  template <class Numbers>
  void put_adjoints_by_task(int i) const {
    const RowStep& s = plan_.step(i);
    const Factor factors[3] = {{adjoints(i), matrix(i)}, {r_adjoints(i), matrix(i)}, {adjoints(i), matrix_slope(i)}};
    const Pair pairs[3] = {{values(s.a), adjoints(i)}, {values(s.a), r_adjoints(i)}, {slopes(s.a), adjoints(i)}};
    if (wanted_[s.a]) multiply_back_by_task(i, adjoints(s.a), factors, 1);
    if (wanted_[s.b]) add_to_matrix(i, matrix_adjoint(i), pairs, 1);
    if constexpr (std::is_same_v<Numbers, Dual>) {
      if (wanted_[s.a]) multiply_back_by_task(i, r_adjoints(s.a), factors + 1, has_slope(s.b) ? 2 : 1);
      if (wanted_[s.b]) add_to_matrix(i, matrix_r_adjoint(i), pairs + 1, has_slope(s.a) ? 2 : 1);
    }
  }

  // ---- what comes to a step that reads parameters ---------------------------------------------

  void put_gradient(int i, const GradientTo& to, bool* seen) {
    const RowStep& s = plan_.step(i);
    if (s.op == RowOp::Parameter) return put_row_gradient(plan_.piece_of[i], adjoints(i), to, seen);
    const Pair pair{values(s.a), adjoints(i)};
    if (this->looks_up(i)) this->put_looked_up(i, adjoints(i), to, seen);
    else put_weight_gradient(i, &pair, 1, to, seen);
    put_bias_gradient(i, adjoints(i), to, seen);
  }
  void put_r_gradient(int i, const GradientTo& to) {
    const RowStep& s = plan_.step(i);
    if (s.op == RowOp::Parameter)
      return put_row_gradient(plan_.piece_of[i], r_adjoints(i), to, seen_[0]);
    const Pair pairs[2] = {{values(s.a), r_adjoints(i)}, {slopes(s.a), adjoints(i)}};
    if (this->looks_up(i)) this->put_looked_up(i, r_adjoints(i), to, seen_[0]);
    else put_weight_gradient(i, pairs, has_slope(s.a) ? 2 : 1, to, seen_[0]);
    put_bias_gradient(i, r_adjoints(i), to, seen_[0]);
  }

  void put_input_adjoint(int i) const {
    const Factor factor{adjoints(i), theta_};
    multiply_back(i, adjoints(plan_.step(i).a), &factor, 1);
  }
  void put_r_input_adjoint(int i) const {
    const RowStep& s = plan_.step(i);
    const Factor factors[2] = {{r_adjoints(i), theta_}, {adjoints(i), v_}};
    multiply_back(i, r_adjoints(s.a), factors, plan_.has_rate(s.b) ? 2 : 1);
  }

  Head<Team> head_;
  const R *x_ = nullptr, *rx_ = nullptr;  // samples, and their derivative where they have one
  const R *theta_ = nullptr, *v_ = nullptr;
  const unsigned char* wanted_ = nullptr;
  bool seen_[2][Team::max_pieces];
  bool in_task_ = false;
};

}  // namespace fastmeta::FASTMETA_ISA
