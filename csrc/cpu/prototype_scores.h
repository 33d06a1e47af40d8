// From the sums over pairs of W queries to their softmax and its gradient: a query a lane.
#pragma once

#include <cmath>

#include "prototypes.h"
#include "simd_math.h"

namespace fastmeta::FASTMETA_ISA {

// Loops over classes keep their sums in registers as functions of their own only.
#define FASTMETA_NOT_INLINE __attribute__((noinline))

template <class R>
FASTMETA_INLINE Vec<R> roots(Vec<R> x) {
  for (int l = 0; l < lanes<R>; ++l) x[l] = std::sqrt(x[l]);
  return x;
}

// Sums over pairs (squared distances or products) of W queries, a query a lane, into logits and into
// what backward needs. `norm` is 1 / |x_q| under cosine.
template <Metric metric, class R>
struct Scores {
  using V = Vec<R>;
  i64 classes;
  R inverse_temperature;

  FASTMETA_INLINE V score(V sum, V norm) const {
    if (metric == Metric::SquaredEuclidean) return -sum * inverse_temperature;
    if (metric == Metric::Euclidean) return -roots<R>(sum) * inverse_temperature;
    if (metric == Metric::Cosine) return (sum * norm - 1) * inverse_temperature;
    return sum * inverse_temperature;
  }
  // du / dr
  FASTMETA_INLINE V factor(V sum, V norm) const {
    if (metric == Metric::SquaredEuclidean) return splat(2 * inverse_temperature);
    if (metric == Metric::Euclidean) return select(sum > 0, inverse_temperature / roots<R>(sum), V{});
    if (metric == Metric::Cosine) return norm * inverse_temperature;
    return splat(inverse_temperature);
  }

  struct Softmax {
    V largest, total, of_label;
  };
  // `powers` are exp(logit - largest), and add up to `total`; of_label: the logit of the label.
  FASTMETA_NOT_INLINE Softmax softmax(const V* sums, V norm, Mask<R> label, V* logits, V* powers) const {
    V largest = splat(-R(INFINITY)), total{}, of_label{};
    for (i64 n = 0; n < classes; ++n) {
      const V logit = score(sums[n], norm);
      const Mask<R> here = label == Mask<R>{} + typename Simd<R>::Int(n);
      logits[n] = logit;
      largest = vmax(logit, largest);
      of_label = select(here, logit, of_label);
    }
    for (i64 n = 0; n < classes; ++n) {
      powers[n] = exp_below_zero(logits[n] - largest);
      total += powers[n];
    }
    return {largest, total, of_label};
  }

  // Is the label the first of the largest logits, and none of them NaN?
  FASTMETA_NOT_INLINE Mask<R> hits(const V* logits, V largest, Mask<R> label) const {
    Mask<R> first{}, numbers = ~Mask<R>{};
    for (i64 n = classes - 1; n >= 0; --n) {
      first = logits[n] == largest ? Mask<R>{} + typename Simd<R>::Int(n) : first;
      numbers &= logits[n] == logits[n];
    }
    return (first == label) & numbers;
  }

  struct Own {
    V v, slope;
  };
  // u [N][ld_u], added to columns_sum too; what the queries add to the gradient of the temperature.
  FASTMETA_NOT_INLINE Own residual(const V* sums, V norm, const V* logits, const V* powers, Softmax s,
                              Mask<R> label, V weight, R* u, i64 ld_u, V* columns_sum) const {
    const V scale = weight / s.total;
    V slope{}, own{};
    for (i64 n = 0; n < classes; ++n) {
      const Mask<R> here = label == Mask<R>{} + typename Simd<R>::Int(n);
      // Of padding the scores may be infinite, and the softmax NaN.
      const V r = select(weight > 0, powers[n] * scale - select(here, weight, V{}), V{});
      const V weighted = r * factor(sums[n], norm);
      store(u + n * ld_u, weighted);
      columns_sum[n] += weighted;
      // r adds up to 0, so that any shift of the scores is allowed.
      slope += select(weight > 0, r * (logits[n] - s.largest), V{});
      if (metric == Metric::Euclidean) own -= weighted;
    }
    return {metric == Metric::Euclidean ? own : -slope * norm, -slope * inverse_temperature};
  }
};

}  // namespace fastmeta::FASTMETA_ISA
