// What stands above a network: targets, the samples' coefficients, the loss and its derivatives.
#pragma once

#include "loss.h"

namespace fastmeta::FASTMETA_ISA {

template <class Team>
class Head {
 public:
  using R = typename Team::Real;
  using V = Vec<R>;
  static constexpr i64 W = Team::W;

  // Scratch for the most samples that will come: targets and curvature are [rows][outputs] in team
  // layout, the coefficients a vector a row.
  struct Scratch {
    R *y, *coefficient, *curvature;
  };

  Head(LossKind kind, i64 outputs, Scratch scratch)
      : kind_(kind), outputs_(outputs), ld_(Team::stride(outputs)),
        vectors_(Team::vectors(outputs)), scratch_(scratch) {}

  void take(const Samples<R>& samples, Slice slice) {
    rows_ = samples.n;
    target_row_ = samples.labels ? W : ld_;
    if (samples.y)
      Team::gather(scratch_.y, samples.y, rows_ * outputs_, outputs_, 1, rows_, outputs_, slice);
    if (samples.labels) take_labels(samples.labels, slice);
    take_coefficients(samples.weight, slice);
  }

  // Multiplies every sample's coefficient by its task's factor.
  void scale_coefficients(V factor) {
    R* c = scratch_.coefficient;
    for (i64 s = 0; s < rows_; ++s) store(c + s * W, load(c + s * W) * factor);
  }

  V loss(const R* predictions) const {
    return with_loss<Team>(kind_, [&](auto kind) {
      V sum{};
      for (i64 s = 0; s < rows_; ++s) {
        const auto row = this->row(predictions, s);
        sum += row.coefficient * kind.value(row, vectors_);
      }
      return sum;
    });
  }

  void gradient(const R* predictions, R* g) {
    with_loss<Team>(kind_, [&](auto kind) {
      for (i64 s = 0; s < rows_; ++s)
        kind.gradient(row(predictions, s), vectors_, g + s * ld_, scratch_.curvature + s * ld_);
    });
  }

  // Needs gradient() before. ry is the derivative of the predictions.
  void r_gradient(const R* predictions, const R* ry, R* rg) const {
    with_loss<Team>(kind_, [&](auto kind) {
      for (i64 s = 0; s < rows_; ++s)
        kind.r_gradient(row(predictions, s), vectors_, ry + s * ld_,
                        scratch_.curvature + s * ld_, rg + s * ld_);
    });
  }

  void zero(R* g) const { std::memset(g, 0, sizeof(R) * size_t(rows_ * ld_)); }

  // g += a gradient given from outside, [T, rows, O]; `taken` is scratch like g.
  void add(R* g, R* taken, const R* outside, Slice slice) const {
    Team::gather(taken, outside, rows_ * outputs_, outputs_, 1, rows_, outputs_, slice);
    for (i64 i = 0; i < rows_ * ld_; i += W) store(g + i, load(g + i) + load(taken + i));
  }

 private:
  Row<Team> row(const R* predictions, i64 s) const {
    return {predictions + s * ld_, scratch_.y + s * target_row_,
            load(scratch_.coefficient + s * W), outputs_};
  }

  void take_labels(const i64* labels, Slice slice) {
    for (i64 s = 0; s < rows_; ++s) {
      V label{};
      if (Team::tasks == 1)
        label = splat(R(labels[slice.first * rows_ + s]));
      else
        for (i64 t = 0; t < slice.tasks; ++t) label[t] = R(labels[(slice.first + t) * rows_ + s]);
      store(scratch_.y + s * W, label);
    }
  }

  void take_coefficients(const R* weight, Slice slice) {
    R* to = scratch_.coefficient;
    if (!weight) {
      // A lane without a task has no weight: it never leaves its start, so it stays finite.
      const V share = Team::active(slice) / R(rows_);
      for (i64 s = 0; s < rows_; ++s) store(to + s * W, share);
      return;
    }
    V sum{};
    for (i64 s = 0; s < rows_; ++s) {
      const V w = Team::per_task(weight + s, rows_, slice);
      store(to + s * W, w);
      sum += w;
    }
    scale_coefficients(select(sum > R(0), R(1) / sum, V{}));
  }

  LossKind kind_;
  i64 outputs_, ld_, vectors_;
  Scratch scratch_;
  i64 rows_ = 0, target_row_ = 0;
};

}  // namespace fastmeta::FASTMETA_ISA
