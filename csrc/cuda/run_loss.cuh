// Targets, the loss and its derivatives, a sample a thread.
#pragma once

#include "run_tensors.cuh"

namespace fastmeta::cuda {

template <class R>
FASTMETA_INLINE void put_coefficients(const Here<R>& here, const Op& op) {
  R* to = here.at(op.to);
  if (op.slot == no_slot) {
    each(op.rows, [&](int s) { to[s] = op.terms ? R(1) : R(1) / R(op.depth); });
    return;
  }
  const R* weight = here.tensor(op.slot, 0);
  R sum = 0;
#pragma unroll 1
  for (int s = 0; s < op.depth; ++s) sum += weight[s];
  const R scale = sum > R(0) ? (op.terms ? R(op.depth) : R(1)) / sum : R(0);
  each(op.rows, [&](int s) { to[s] = weight[op.from + s] * scale; });
}

template <class R>
struct Sample {
  const R* prediction;
  const R* target;  // as many numbers as predictions, or the label
  R coefficient;
};

template <class R>
FASTMETA_INLINE Sample<R> sample(const Here<R>& here, const Op& op, int s) {
  const auto& known = here.known();
  return {here.at(op.from) + s * op.from_row, here.at(known.targets_at) + s * known.target_row,
          *here.at(known.coefficient_at + s)};
}

template <class R>
FASTMETA_INLINE R largest_of(const R* y, int n) {
  R most = -INFINITY;
#pragma unroll 1
  for (int c = 0; c < n; ++c) most = y[c] > most ? y[c] : most;
  return most;
}

template <class R>
FASTMETA_INLINE R loss_of(const Sample<R>& of, LossKind kind, int n) {
  const R* y = of.prediction;
  const R* t = of.target;
  R sum = 0;
  if (kind == LossKind::MeanSquaredError) {
#pragma unroll 1
    for (int c = 0; c < n; ++c) sum += (y[c] - t[c]) * (y[c] - t[c]);
    return sum / R(n);
  }
  if (kind == LossKind::BinaryCrossEntropy) {
#pragma unroll 1
    for (int c = 0; c < n; ++c)
      sum += (y[c] > R(0) ? y[c] : R(0)) - y[c] * t[c] + log1p(exp(-absolute(y[c])));
    return sum / R(n);
  }
  const R most = largest_of(y, n);
  R chosen = *t - *t;  // 0, or NaN of a label that is NaN
#pragma unroll 1
  for (int c = 0; c < n; ++c) {
    sum += exp(y[c] - most);
    chosen += R(c) == *t ? y[c] - most : R(0);
  }
  return log(sum) - chosen;
}

// The samples' losses wait in `to`; one thread adds them up, in their order.
template <class R, class F>
FASTMETA_INLINE void add_up(const Here<R>& here, const Op& op, F loss) {
  R* each_loss = here.at(op.to);
  each(op.rows, [&](int s) { each_loss[s] = loss(s); });
  __syncthreads();
  if (threadIdx.x) return;
  R sum = op.depth ? R(0) : *here.at(here.known().loss_at);
  R part = 0;
#pragma unroll 1
  for (int s = 0; s < op.rows; ++s) part += each_loss[s];
  *here.at(here.known().loss_at) = sum + part;
}

template <class R>
FASTMETA_INLINE void add_losses(const Here<R>& here, const Op& op) {
  add_up(here, op, [&](int s) {
    const Sample<R> of = sample(here, op, s);
    return of.coefficient * loss_of(of, here.known().loss, op.columns);
  });
}

// g, and what r_gradient needs: softmax, or the derivative of sigmoid.
template <class R>
FASTMETA_INLINE void loss_gradient(const Here<R>& here, const Op& op) {
  const LossKind kind = here.known().loss;
  const int n = op.columns;
  each(op.rows, [&](int s) {
    const Sample<R> of = sample(here, op, s);
    const R* y = of.prediction;
    R* g = here.at(op.to) + s * op.to_row;
    R* curvature = here.at(here.known().curvature_at) + s * op.to_row;
    if (kind == LossKind::MeanSquaredError) {
      const R scale = of.coefficient * (R(2) / R(n));
#pragma unroll 1
      for (int c = 0; c < n; ++c) g[c] = scale * (y[c] - of.target[c]);
    } else if (kind == LossKind::BinaryCrossEntropy) {
      const R scale = of.coefficient / R(n);
#pragma unroll 1
      for (int c = 0; c < n; ++c) {
        const R p = sigmoid(y[c]);
        curvature[c] = p * (R(1) - p);
        g[c] = scale * (p - of.target[c]);
      }
    } else {
      const R most = largest_of(y, n), label = *of.target, unknown = label - label;
      R sum = 0;
#pragma unroll 1
      for (int c = 0; c < n; ++c) {
        curvature[c] = exp(y[c] - most);
        sum += curvature[c];
      }
      const R scale = R(1) / sum;
#pragma unroll 1
      for (int c = 0; c < n; ++c) {
        const R p = curvature[c] * scale;
        curvature[c] = p;
        g[c] = of.coefficient * (p - (R(c) == label ? R(1) : unknown));
      }
    }
  });
}

template <class R>
FASTMETA_INLINE void loss_r_gradient(const Here<R>& here, const Op& op) {
  const LossKind kind = here.known().loss;
  const int n = op.columns;
  each(op.rows, [&](int s) {
    const R coefficient = *here.at(here.known().coefficient_at + s);
    const R* ry = here.at(op.value) + s * op.to_row;
    const R* curvature = here.at(here.known().curvature_at) + s * op.to_row;
    R* rg = here.at(op.to) + s * op.to_row;
    if (kind == LossKind::MeanSquaredError) {
      const R scale = coefficient * (R(2) / R(n));
#pragma unroll 1
      for (int c = 0; c < n; ++c) rg[c] = scale * ry[c];
    } else if (kind == LossKind::BinaryCrossEntropy) {
      const R scale = coefficient / R(n);
#pragma unroll 1
      for (int c = 0; c < n; ++c) rg[c] = scale * curvature[c] * ry[c];
    } else {
      R mean = 0;
#pragma unroll 1
      for (int c = 0; c < n; ++c) mean += curvature[c] * ry[c];
#pragma unroll 1
      for (int c = 0; c < n; ++c) rg[c] = coefficient * curvature[c] * (ry[c] - mean);
    }
  });
}

}  // namespace fastmeta::cuda
