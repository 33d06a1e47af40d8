// Rows of features, labels and class means: what all kernels of prototypes begin with.
#pragma once

#include "prototype_tiles.h"
#include "runtime.h"

namespace fastmeta::FASTMETA_ISA {

// Waking a thread pays for itself with so much arithmetic, no less.
inline i64 threads_for(double multiplications, i64 threads) {
  constexpr double least = 1 << 17;
  return multiplications < least * double(threads) ? larger(1, i64(multiplications / least)) : threads;
}

// The rows as whole vectors: where they are if they are that already, else copied with zeros behind.
template <class R>
const R* whole_rows(const R* from, i64 rows, i64 features, R* scratch) {
  const i64 ld = round_up(features, lanes<R>);
  if (ld == features) return from;
  for (i64 r = 0; r < rows; ++r) {
    std::memcpy(scratch + r * ld, from + r * features, sizeof(R) * size_t(features));
    std::memset(scratch + r * ld + features, 0, sizeof(R) * size_t(ld - features));
  }
  return scratch;
}

template <class R>
FASTMETA_INLINE R weight_of(const R* weight, i64 i) {
  return weight ? weight[i] : R(1);
}
// Finite and not negative; a NaN is neither.
template <class R>
FASTMETA_INLINE bool is_weight(R w) {
  return w >= 0 && w <= std::numeric_limits<R>::max();
}

// Are the labels of all samples of weight above 0 in range? Writes the sum of weights, which must be
// above 0 too.
template <class R>
bool check_labels(const i64* labels, const R* weight, i64 samples, i64 classes, R* sum) {
  bool fits = true;
  double total = 0;
  for (i64 s = 0; s < samples; ++s) {
    const R w = weight_of(weight, s);
    fits &= is_weight(w) && (w == 0 || std::uint64_t(labels[s]) < std::uint64_t(classes));
    total += double(w);
  }
  *sum = R(total);
  return fits && total > 0;
}

template <class R>
void add_difference(R* __restrict sum, const R* __restrict x, const R* __restrict origin, R w,
                    i64 features) {
  for (i64 d = 0; d < features; ++d) sum[d] += w * (x[d] - origin[d]);
}

// means [N][ld], zeros behind the features, and one over each class' weight; false where a label or
// a weight is not as it must be, or a class has no sample of weight above 0. Sums are of differences
// to a sample: a common offset costs nothing.
template <class R>
bool class_means_of(const R* x, const i64* labels, const R* weight, i64 samples, i64 classes,
                    i64 features, R* means, i64 ld, R* inverse) {
  R total;
  if (!check_labels(labels, weight, samples, classes, &total)) return false;
  std::memset(means, 0, sizeof(R) * size_t(classes * ld));
  std::memset(inverse, 0, sizeof(R) * size_t(classes));
  i64 first = 0;
  while (weight_of(weight, first) == 0) ++first;
  const R* origin = x + first * features;
  for (i64 s = 0; s < samples; ++s) {
    const R w = weight_of(weight, s);
    if (w == 0) continue;
    inverse[labels[s]] += w;
    add_difference(means + labels[s] * ld, x + s * features, origin, w, features);
  }
  for (i64 n = 0; n < classes; ++n) {
    if (inverse[n] == 0) return false;
    inverse[n] = 1 / inverse[n];
    R* mean = means + n * ld;
    for (i64 d = 0; d < features; ++d) mean[d] = origin[d] + mean[d] * inverse[n];
  }
  return true;
}

}  // namespace fastmeta::FASTMETA_ISA
