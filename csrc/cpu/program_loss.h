// The rows of a head as the machine of a user's loss takes them, a sample a lane: in a pack the lanes are
// tasks already, alone a task's samples come W at a time.
#pragma once

#include "row_machine.h"

namespace fastmeta::FASTMETA_ISA {

template <class Team>
class ProgramLoss {
 public:
  using R = typename Team::Real;
  using V = Vec<R>;
  static constexpr i64 W = Team::W, samples = Team::tasks == 1 ? W : 1;  // at once

  struct Rows {
    const R *predictions, *targets, *coefficients;
    i64 n, outputs, targets_each;
    R factor;  // of all coefficients
    i64 ld() const { return Team::stride(outputs); }
  };

  // scratch: rows and adjoints of dual numbers, `loss_scratch`.
  ProgramLoss(const RowProgram& program, R* scratch, const Rows& rows)
      : program_(program), scratch_(scratch), rows_(rows) {}

  // The sum of coefficient * loss.
  V value() const {
    V sum{};
    each_group<Plain>([&](i64 s, i64, Rows_<Plain> numbers) {
      sum += weighed(coefficients(s), forward<Plain>(numbers));
    });
    return samples > 1 ? splat(horizontal_sum<R>(sum)) : sum;
  }

  void gradient(R* g) const {
    each_group<Plain>([&](i64 s, i64 count, Rows_<Plain> numbers) {
      forward<Plain>(numbers);
      const auto of_predictions = backward<Plain>(numbers);
      const V scale = coefficients(s);
      put(g, s, count, [&](i64 j) { return weighed(scale, of_predictions[j]); });
    });
  }

  // Of the gradient, along ry in the predictions.
  void r_gradient(const R* ry, R* rg) const {
    each_group<Dual>([&](i64 s, i64 count, Rows_<Dual> numbers) {
      for (i64 j = 0; j < rows_.outputs; ++j)
        store(numbers.slopes + j * W, take(ry, rows_.outputs, s, count, j));
      forward<Dual>(numbers);
      const auto of_predictions = backward<Dual>(numbers);
      const V scale = coefficients(s);
      put(rg, s, count, [&](i64 j) { return weighed(scale, of_predictions[j].slope); });
    });
  }

 private:
  using Plain = PlainNumbers<R>;
  using Dual = DualNumbers<R>;
  template <class Numbers>
  using Rows_ = typename Numbers::Row;

  i64 size() const { return program_.size * W; }
  // The values and their slopes, then both of the adjoints.
  void point_to(typename Plain::Row& rows, i64 at) const { rows = {scratch_ + at * size()}; }
  void point_to(typename Dual::Row& rows, i64 at) const {
    rows = {scratch_ + at * size(), scratch_ + (at + 1) * size()};
  }
  template <class Numbers>
  RowMachine<Numbers> machine(Rows_<Numbers> rows, Rows_<Numbers> adjoints) const {
    return {program_, program_.varies, rows, adjoints, rows, adjoints};
  }

  // The loss of each lane's sample.
  template <class Numbers>
  V forward(Rows_<Numbers> rows) const {
    const auto machine = this->machine<Numbers>(rows, rows);
    for (int i = 2; i < program_.n_rows; ++i) machine.forward(i);
    return Numbers::value(rows[program_.rows[program_.n_rows - 1].at]);
  }
  // The adjoints of the predictions.
  template <class Numbers>
  Rows_<Numbers> backward(Rows_<Numbers> rows) const {
    Rows_<Numbers> adjoints;
    point_to(adjoints, 2);
    const auto machine = this->machine<Numbers>(rows, adjoints);
    const int last = program_.n_rows - 1;
    adjoints.put(program_.rows[last].at, Numbers::constant(splat(R(1))));
    for (int i = last; i >= 2; --i)
      if (program_.varies[i]) machine.backward(i);
    for (i64 j = 0; !program_.varies[0] && j < rows_.outputs; ++j)
      adjoints.put(j, Numbers::constant(V{}));
    return adjoints;
  }

  // f(first sample, samples, their rows, of which predictions and targets are there)
  template <class Numbers, class F>
  void each_group(F f) const {
    Rows_<Numbers> numbers;
    point_to(numbers, 0);
    for (i64 s = 0; s < rows_.n; s += samples) {
      const i64 count = smaller(samples, rows_.n - s);
      read<Numbers>(numbers, rows_.predictions, rows_.outputs, s, count);
      read<Numbers>(numbers + rows_.outputs, rows_.targets, rows_.targets_each, s, count);
      f(s, count, numbers);
    }
  }
  template <class Numbers>
  void read(Rows_<Numbers> to, const R* from, i64 columns, i64 s, i64 count) const {
    for (i64 j = 0; j < columns; ++j) to.put(j, Numbers::constant(take(from, columns, s, count, j)));
  }

  // Column j of the samples from s on.
  V take(const R* from, i64 columns, i64 s, i64 count, i64 j) const {
    const i64 ld = Team::stride(columns);
    if constexpr (samples == 1) return load(from + s * ld + j * W);
    V v{};
    for (i64 l = 0; l < count; ++l) v[l] = from[(s + l) * ld + j];
    return v;
  }
  template <class F>
  void put(R* to, i64 s, i64 count, F f) const {
    const i64 ld = rows_.ld();
    to += s * ld;
    if constexpr (samples == 1) {
      for (i64 j = 0; j < rows_.outputs; ++j) store(to + j * W, f(j));
      return;
    }
    for (i64 i = 0; i < count * ld; i += W) store(to + i, V{});
    for (i64 j = 0; j < rows_.outputs; ++j) {
      const V v = f(j);
      for (i64 l = 0; l < count; ++l) to[l * ld + j] = v[l];
    }
  }
  V coefficients(i64 s) const {
    if constexpr (samples == 1) return load(rows_.coefficients + s * W) * rows_.factor;
    V v{};
    for (i64 l = 0; l < smaller(samples, rows_.n - s); ++l) v[l] = rows_.coefficients[(s + l) * W];
    return v * rows_.factor;
  }
  // A lane without a sample has no weight, and may have come to anything.
  static V weighed(V coefficient, V x) { return select(coefficient != V{}, coefficient * x, V{}); }

  const RowProgram& program_;
  R* scratch_;
  Rows rows_;
};

}  // namespace fastmeta::FASTMETA_ISA
