// The rows of a head as the machine of a user's loss takes them, a sample a lane: in a pack the lanes are
// tasks already, alone a task's samples come W at a time.
#pragma once

#include "loss_machine.h"

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
  ProgramLoss(const LossProgram& program, R* scratch, const Rows& rows)
      : program_(program), scratch_(scratch), rows_(rows) {}

  // The sum of coefficient * loss.
  V value() const {
    V sum{};
    each_group<Plain>([&](i64 s, i64, const LossMachine<Plain>& machine) {
      sum += weighed(coefficients(s), machine.forward());
    });
    return samples > 1 ? splat(horizontal_sum<R>(sum)) : sum;
  }

  void gradient(R* g) const {
    each_group<Plain>([&](i64 s, i64 count, const LossMachine<Plain>& machine) {
      machine.forward();
      const V* of_predictions = machine.backward();
      const V scale = coefficients(s);
      put(g, s, count, [&](i64 j) { return weighed(scale, of_predictions[j]); });
    });
  }

  // Of the gradient, along ry in the predictions.
  void r_gradient(const R* ry, R* rg) const {
    each_group<Dual>([&](i64 s, i64 count, const LossMachine<Dual>& machine) {
      DualNumber<R>* predictions = numbers<Dual>();
      for (i64 j = 0; j < rows_.outputs; ++j) predictions[j].slope = take(ry, rows_.outputs, s, count, j);
      machine.forward();
      const DualNumber<R>* of_predictions = machine.backward();
      const V scale = coefficients(s);
      put(rg, s, count, [&](i64 j) { return weighed(scale, of_predictions[j].slope); });
    });
  }

 private:
  using Plain = PlainNumbers<R>;
  using Dual = DualNumbers<R>;

  template <class Numbers>
  typename Numbers::N* numbers() const {
    return reinterpret_cast<typename Numbers::N*>(scratch_);
  }

  // f(first sample, samples, a machine that has read them)
  template <class Numbers, class F>
  void each_group(F f) const {
    auto* numbers = this->numbers<Numbers>();
    const LossMachine<Numbers> machine(program_, numbers, numbers + program_.size);
    for (i64 s = 0; s < rows_.n; s += samples) {
      const i64 count = smaller(samples, rows_.n - s);
      read<Numbers>(numbers, rows_.predictions, rows_.outputs, s, count);
      read<Numbers>(numbers + rows_.outputs, rows_.targets, rows_.targets_each, s, count);
      f(s, count, machine);
    }
  }
  template <class Numbers>
  void read(typename Numbers::N* to, const R* from, i64 columns, i64 s, i64 count) const {
    for (i64 j = 0; j < columns; ++j)
      to[j] = Numbers::constant(take(from, columns, s, count, j));
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

  const LossProgram& program_;
  R* scratch_;
  Rows rows_;
};

}  // namespace fastmeta::FASTMETA_ISA
