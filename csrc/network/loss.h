// Losses of one sample, their gradient and the R-operator of that gradient. A row is one sample;
// `coefficient` is its weight over the sum of weights, so that the task's loss is the plain sum.
#pragma once

namespace fastmeta::FASTMETA_ISA {

template <class Team>
struct Row {
  using R = typename Team::Real;
  const R* prediction;
  const R* target;      // a matrix row, or one vector that holds the label
  Vec<R> coefficient;
  i64 columns;

  FASTMETA_INLINE Vec<R> y(i64 v) const { return load(prediction + v * Team::W); }
  FASTMETA_INLINE Vec<R> t(i64 v) const { return load(target + v * Team::W); }
  FASTMETA_INLINE Vec<R> inside(i64 v, Vec<R> x) const {
    return select(Team::valid(v, columns), x, Vec<R>{});
  }
};

template <class Team>
struct MeanSquaredError {
  using R = typename Team::Real;
  static constexpr bool keeps_curvature = false;

  FASTMETA_CODE static Vec<R> value(const Row<Team>& row, i64 vectors) {
    Vec<R> sum{};
    for (i64 v = 0; v < vectors; ++v) {
      const Vec<R> error = row.inside(v, row.y(v) - row.t(v));
      sum += error * error;
    }
    return Team::across_sum(sum) / R(row.columns);
  }
  FASTMETA_CODE static void gradient(const Row<Team>& row, i64 vectors, R* g, R*) {
    const Vec<R> scale = row.coefficient * (R(2) / R(row.columns));
    for (i64 v = 0; v < vectors; ++v)
      store(g + v * Team::W, row.inside(v, scale * (row.y(v) - row.t(v))));
  }
  FASTMETA_CODE static void r_gradient(const Row<Team>& row, i64 vectors, const R* ry, const R*,
                                       R* rg) {
    const Vec<R> scale = row.coefficient * (R(2) / R(row.columns));
    for (i64 v = 0; v < vectors; ++v) store(rg + v * Team::W, scale * load(ry + v * Team::W));
  }
};

// Softmax cross-entropy; the curvature kept is the softmax.
template <class Team>
struct CrossEntropy {
  using R = typename Team::Real;
  static constexpr bool keeps_curvature = true;

  FASTMETA_INLINE static Vec<R> largest(const Row<Team>& row, i64 vectors) {
    Vec<R> m = splat(R(-INFINITY));
    for (i64 v = 0; v < vectors; ++v)
      m = vmax(m, select(Team::valid(v, row.columns), row.y(v), splat(R(-INFINITY))));
    return Team::across_max(m);
  }
  FASTMETA_CODE static Vec<R> value(const Row<Team>& row, i64 vectors) {
    const Vec<R> m = largest(row, vectors), label = load(row.target);
    Vec<R> sum{}, chosen{};
    for (i64 v = 0; v < vectors; ++v) {
      sum += row.inside(v, exp(row.y(v) - m));
      chosen += select(Team::column(v) == label, row.y(v) - m, Vec<R>{});
    }
    return log(Team::across_sum(sum)) - Team::across_sum(chosen);
  }
  FASTMETA_CODE static void gradient(const Row<Team>& row, i64 vectors, R* g, R* softmax) {
    const Vec<R> m = largest(row, vectors), label = load(row.target);
    Vec<R> sum{};
    for (i64 v = 0; v < vectors; ++v) {
      const Vec<R> e = row.inside(v, exp(row.y(v) - m));
      store(softmax + v * Team::W, e);
      sum += e;
    }
    const Vec<R> scale = R(1) / Team::across_sum(sum);
    for (i64 v = 0; v < vectors; ++v) {
      const Vec<R> p = load(softmax + v * Team::W) * scale;
      const Vec<R> hot = select(Team::column(v) == label, splat(R(1)), Vec<R>{});
      store(softmax + v * Team::W, p);
      store(g + v * Team::W, row.coefficient * (p - hot));
    }
  }
  FASTMETA_CODE static void r_gradient(const Row<Team>& row, i64 vectors, const R* ry,
                                       const R* softmax, R* rg) {
    Vec<R> mean{};
    for (i64 v = 0; v < vectors; ++v)
      mean += load(softmax + v * Team::W) * load(ry + v * Team::W);
    mean = Team::across_sum(mean);
    for (i64 v = 0; v < vectors; ++v)
      store(rg + v * Team::W, row.coefficient * load(softmax + v * Team::W) *
                                  (load(ry + v * Team::W) - mean));
  }
};

// On logits; the curvature kept is sigmoid'(y).
template <class Team>
struct BinaryCrossEntropy {
  using R = typename Team::Real;
  static constexpr bool keeps_curvature = true;

  FASTMETA_CODE static Vec<R> value(const Row<Team>& row, i64 vectors) {
    Vec<R> sum{};
    for (i64 v = 0; v < vectors; ++v) {
      const Vec<R> y = row.y(v);
      sum += row.inside(v, vmax(y, Vec<R>{}) - y * row.t(v) + log1p(exp(-absolute<R>(y))));
    }
    return Team::across_sum(sum) / R(row.columns);
  }
  FASTMETA_CODE static void gradient(const Row<Team>& row, i64 vectors, R* g, R* curvature) {
    const Vec<R> scale = row.coefficient / R(row.columns);
    for (i64 v = 0; v < vectors; ++v) {
      const Vec<R> p = sigmoid(row.y(v));
      store(curvature + v * Team::W, row.inside(v, p * (R(1) - p)));
      store(g + v * Team::W, row.inside(v, scale * (p - row.t(v))));
    }
  }
  FASTMETA_CODE static void r_gradient(const Row<Team>& row, i64 vectors, const R* ry,
                                       const R* curvature, R* rg) {
    const Vec<R> scale = row.coefficient / R(row.columns);
    for (i64 v = 0; v < vectors; ++v)
      store(rg + v * Team::W,
            scale * load(curvature + v * Team::W) * load(ry + v * Team::W));
  }
};

template <class Team, class F>
FASTMETA_INLINE auto with_loss(LossKind kind, F&& f) {
  switch (kind) {
    case LossKind::MeanSquaredError:
      return f(MeanSquaredError<Team>{});
    case LossKind::CrossEntropy:
      return f(CrossEntropy<Team>{});
    case LossKind::BinaryCrossEntropy:
      return f(BinaryCrossEntropy<Team>{});
    case LossKind::Program: case LossKind::CrossEntropyAtPlaces:  // of some teams: see head.h
      break;
  }
  __builtin_unreachable();
}

}  // namespace fastmeta::FASTMETA_ISA
