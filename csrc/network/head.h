// What stands above a network: targets, the samples' coefficients, the loss and its derivatives.
#pragma once

#include "loss.h"
#include "loss_room.h"
#include "row_team.h"

namespace fastmeta::FASTMETA_ISA {

// Where a team can run them: a user's loss, cpu/program_loss.h, and many labels a sample,
// cpu/loss_at_places.h.
template <class Team>
class ProgramLoss;
template <class Team>
class CrossEntropyAtPlaces;

template <class Team>
class Head {
 public:
  using R = typename Team::Real;
  using V = Vec<R>;
  using Rows = RowTeam<Team>;
  static constexpr i64 W = Team::W, together = samples_a_row<Team>;

  // Scratch for the most samples that will come: targets are [rows][targets] and curvature is
  // [rows][outputs] in the layout of samples, the coefficients a vector a row.
  struct Scratch {
    R *y, *coefficient, *curvature, *program;
  };

  template <class Network>
  FASTMETA_CODE Head(const Network& network, i64 outputs, Scratch scratch)
      : kind_(network.loss), outputs_(outputs), targets_(targets_of<Team>(network, outputs)),
        ld_(Rows::stride(outputs)), vectors_(Rows::vectors(outputs)), scratch_(scratch) {
    if constexpr (Team::runs_programs) program_ = &network.program;
    if constexpr (Team::takes_places) places_ = &network.places;
  }

  FASTMETA_CODE void take(const Samples<R>& samples, Slice slice) {
    take(samples, slice, 0, samples.n);
  }

  // Samples begin.. begin + n: a part of them, of which the loss is then a part.
  FASTMETA_CODE void take(const Samples<R>& samples, Slice slice, i64 begin, i64 n) {
    total_ = samples.n;
    begin_ = begin;
    n_ = n;
    rows_ = rows_of<Team>(n);
    target_row_ = samples.labels && !at_places() ? W : Rows::stride(targets_);
    if (samples.y)
      Rows::gather(scratch_.y, samples.y + begin * targets_, total_ * targets_, targets_, 1, n_,
                   targets_, slice);
    take_coefficients(samples.weight, slice);
    if (!samples.labels) return;
    if constexpr (Team::takes_places)
      if (at_places()) return take_labels_at_places(samples.labels, slice);
    take_labels(samples.labels, slice);
  }

  // Multiplies every sample's coefficient by its task's factor.
  FASTMETA_CODE void scale_coefficients(V factor) {
    R* c = scratch_.coefficient;
    Team::each_row(rows_, [&](i64 s) { store(c + s * W, load(c + s * W) * factor); });
  }

  // Of the samples taken; scratch: a vector a row.
  FASTMETA_CODE V loss(const R* predictions, R* scratch = nullptr) const {
    if constexpr (Team::runs_programs)
      if (kind_ == LossKind::Program) return program(predictions).value();
    return with_kind([&](auto kind) {
      return Team::sum_rows(rows_, scratch, [&](i64 s) {
        const auto row = this->row(predictions, s);
        return row.coefficient * kind.value(row, vectors_);
      });
    });
  }

  FASTMETA_CODE void gradient(const R* predictions, R* g) {
    if constexpr (Team::runs_programs)
      if (kind_ == LossKind::Program) return program(predictions).gradient(g);
    with_kind([&](auto kind) {
      Team::each_row(rows_, [&](i64 s) {
        kind.gradient(row(predictions, s), vectors_, g + s * ld_, scratch_.curvature + s * ld_);
      });
    });
  }

  // Needs gradient() before. ry is the derivative of the predictions.
  FASTMETA_CODE void r_gradient(const R* predictions, const R* ry, R* rg) const {
    if constexpr (Team::runs_programs)
      if (kind_ == LossKind::Program) return program(predictions).r_gradient(ry, rg);
    with_kind([&](auto kind) {
      Team::each_row(rows_, [&](i64 s) {
        kind.r_gradient(row(predictions, s), vectors_, ry + s * ld_,
                        scratch_.curvature + s * ld_, rg + s * ld_);
      });
    });
  }

  // Of rows begin.. begin + rows of those taken.
  FASTMETA_CODE Head part(i64 begin, i64 rows) const {
    Head some = *this;
    some.scratch_.y += begin * target_row_;
    some.scratch_.coefficient += begin * W;
    some.scratch_.curvature += begin * ld_;
    some.rows_ = rows;
    return some;
  }

  FASTMETA_CODE void zero(R* g) const { Team::zero(g, rows_ * ld_); }

  // g += a gradient given from outside, [T, rows, O]; `taken` is scratch like g.
  FASTMETA_CODE void add(R* g, R* taken, const R* outside, Slice slice) const {
    Rows::gather(taken, outside + begin_ * outputs_, total_ * outputs_, outputs_, 1, n_, outputs_,
                 slice);
    Team::each(rows_ * ld_, [&](i64 i) { store(g + i, load(g + i) + load(taken + i)); });
  }

 private:
  FASTMETA_CODE Row<Rows> row(const R* predictions, i64 s) const {
    return {predictions + s * ld_, scratch_.y + s * target_row_,
            load(scratch_.coefficient + s * W), outputs_};
  }

  FASTMETA_CODE bool at_places() const {
    if constexpr (Team::takes_places) return kind_ == LossKind::CrossEntropyAtPlaces;
    return false;
  }
  // f(the loss of a row)
  template <class F>
  FASTMETA_CODE auto with_kind(F f) const {
    if constexpr (Team::takes_places)
      if (at_places()) return f(CrossEntropyAtPlaces<Rows>(*places_));
    return with_loss<Rows>(kind_, f);
  }

  ProgramLoss<Rows> program(const R* predictions) const {
    const R factor = program_->adds ? R(total_) : R(1);
    return {*program_, scratch_.program,
            {predictions, scratch_.y, scratch_.coefficient, rows_, outputs_, targets_, factor}};
  }

  // A label that no output stands for, which only a change behind PyTorch's back can bring here, makes
  // its sample's coefficient NaN, and so whatever depends on it.
  FASTMETA_CODE void take_labels(const i64* labels, Slice slice) {
    labels += slice.first * total_ + begin_;
    Team::each_row(rows_, [&](i64 s) {
      const V label = of_samples(s, slice, [&](i64 i) { return known(labels[i], outputs_); });
      store(scratch_.y + s * W, label);
      spoil(s, label - label);
    });
  }

  // The same of [T, n, places], -1 where a label is ignored. By as much as a task's labels weigh less than
  // one each, by so much they count more.
  void take_labels_at_places(const i64* labels, Slice slice) {
    const i64 places = places_->count, all = total_ * places;
    labels += slice.first * all;
    R more[Team::tasks] = {};
    for (i64 t = 0; t < slice.tasks; ++t) {
      double weights = 0;
      for (i64 i = 0; i < all; ++i) weights += places_->weight(labels[t * all + i]);
      more[t] = R(double(all) / weights);
    }
    const auto label = [&](i64 i, i64 p) {
      const i64 label = labels[(begin_ + i) * places + p];
      return label == places_->ignored ? R(-1) : known(label, places_->classes);
    };
    Team::each_row(rows_, [&](i64 s) {
      R *to = scratch_.y + s * target_row_, *c = scratch_.coefficient + s * W;
      store(c, load(c) * of_samples(s, slice, [&](i64 i) { return more[i / total_]; }));
      V unknown{};
      for (i64 p = 0; p < places; ++p) {
        const V lane = of_samples(s, slice, [&](i64 i) { return label(i, p); });
        if constexpr (Team::tasks == 1 && together == 1)
          to[p] = lane[0];
        else
          store(to + p * W, lane);
        unknown += lane - lane;
      }
      spoil(s, unknown);
    });
  }

  // f(i) in the lanes of row s that have sample i of those taken, counted from their first task's on.
  template <class F>
  FASTMETA_CODE V of_samples(i64 s, [[maybe_unused]] Slice slice, F f) const {
    V lane{};
    if constexpr (together > 1)
      Rows::each_lane(s, n_, slice, [&](i64 l, i64 t, i64 sample) { lane[l] = f(t * total_ + sample); });
    else if constexpr (Team::tasks == 1)
      lane = splat(f(s));
    else
      for (i64 t = 0; t < slice.tasks; ++t) lane[t] = f(t * total_ + s);
    return lane;
  }

  FASTMETA_CODE void spoil(i64 s, V nothing_or_nan) {
    R* c = scratch_.coefficient + s * W;
    store(c, load(c) + nothing_or_nan);
  }

  FASTMETA_CODE static R known(i64 label, i64 classes) {
    return 0 <= label && label < classes ? R(label) : R(NAN);
  }

  FASTMETA_CODE void take_coefficients(const R* weight, Slice slice) {
    R* to = scratch_.coefficient;
    if (!weight) {
      // A lane without a task has no weight: it never leaves its start, so it stays finite.
      if constexpr (together > 1) {
        Team::each_row(rows_, [&](i64 s) {
          V share{};
          Rows::each_lane(s, n_, slice, [&](i64 l, i64, i64) { share[l] = R(1) / R(total_); });
          store(to + s * W, share);
        });
      } else {
        const V share = Team::active(slice) / R(total_);
        Team::each_row(rows_, [&](i64 s) { store(to + s * W, share); });
      }
      return;
    }
    V sum{};
    for (i64 s = 0; s < total_; ++s) sum += Team::per_task(weight + s, total_, slice);
    const V scale = select(sum > R(0), R(1) / sum, V{});
    Team::each_row(rows_, [&](i64 s) {
      store(to + s * W, weights_of(weight + begin_, s, slice) * scale);
    });
  }

  // Of a row's samples; 0 where there is none.
  FASTMETA_CODE V weights_of(const R* weight, i64 s, Slice slice) const {
    if constexpr (together == 1) return Team::per_task(weight + s, total_, slice);
    V lane{};
    if constexpr (together > 1)
      Rows::each_lane(s, n_, slice, [&](i64 l, i64 t, i64 sample) {
        lane[l] = weight[(slice.first + t) * total_ + sample];
      });
    return lane;
  }

  LossKind kind_;
  const RowProgram* program_ = nullptr;
  const LabelPlaces* places_ = nullptr;
  i64 outputs_, targets_, ld_, vectors_;
  Scratch scratch_;
  i64 total_ = 0, begin_ = 0, n_ = 0, rows_ = 0, target_row_ = 0;
};

}  // namespace fastmeta::FASTMETA_ISA
