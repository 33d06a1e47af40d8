// Rows of features, labels and class means: what all kernels of prototypes begin with.
#pragma once

#include "prototype_features.h"
#include "prototype_tiles.h"
#include "runtime.h"

namespace fastmeta::FASTMETA_ISA {

// Waking a thread pays for itself with so much arithmetic, no less.
inline i64 threads_for(double multiplications, i64 threads) {
  constexpr double least = 1 << 17;
  return multiplications < least * double(threads) ? larger(1, i64(multiplications / least)) : threads;
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
  if (!weight) {  // a loop that is vectors
    std::uint64_t largest = 0;
    for (i64 s = 0; s < samples; ++s) largest = std::uint64_t(labels[s]) > largest ? std::uint64_t(labels[s]) : largest;
    *sum = R(samples);
    return samples > 0 && largest < std::uint64_t(classes);
  }
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

// Support samples of a task: features [S][D], which begin `first` rows into a tensor.
template <class R>
struct Support {
  const void* x;
  Storage storage;
  i64 first;
  const i64* labels;
  const R* weight;
  i64 samples, features;

  const R* row(i64 s, R* scratch) const {
    return read_features(x, storage, (first + s) * features, features, scratch);
  }
};

// The sample of the largest weight of each class into means, the first of those: differences to it lose
// nothing to a common offset, nor to what is far in another class or weighs little. best: zeros, [N][ld].
template <class R>
void take_origins(const Support<R>& of, R* means, i64 ld, R* best, R* row) {
  for (i64 s = 0; s < of.samples; ++s) {
    const R w = weight_of(of.weight, s);
    if (w == 0) continue;  // its label may be anything
    R& largest = best[of.labels[s] * ld];
    if (!(w > largest)) continue;
    largest = w;
    std::memcpy(means + of.labels[s] * ld, of.row(s, row), sizeof(R) * size_t(of.features));
  }
}

// means [N][ld], zeros behind the features, and one over each class' weight; false where a label or
// a weight is not as it must be, or a class has no sample of weight above 0.
// Scratch: differences as large as the means, and a row of half precision.
template <class R>
bool class_means_of(const Support<R>& of, i64 classes, R* means, i64 ld, R* inverse, R* differences,
                    R* row) {
  R total;
  if (!check_labels(of.labels, of.weight, of.samples, classes, &total)) return false;
  const size_t bytes = sizeof(R) * size_t(classes * ld);
  std::memset(means, 0, bytes);
  std::memset(differences, 0, bytes);
  std::memset(inverse, 0, sizeof(R) * size_t(classes));
  if (of.weight) {
    take_origins(of, means, ld, differences, row);
    std::memset(differences, 0, bytes);
  }
  for (i64 s = 0; s < of.samples; ++s) {
    const R w = weight_of(of.weight, s);
    if (w == 0) continue;
    const i64 n = of.labels[s];
    const R* x = of.row(s, row);
    if (!of.weight && inverse[n] == 0)
      std::memcpy(means + n * ld, x, sizeof(R) * size_t(of.features));
    else
      add_difference(differences + n * ld, x, means + n * ld, w, of.features);
    inverse[n] += w;
  }
  for (i64 n = 0; n < classes; ++n) {
    if (inverse[n] == 0) return false;
    inverse[n] = 1 / inverse[n];
    for (i64 i = n * ld; i < (n + 1) * ld; i += lanes<R>) {
      const Vec<R> origin = load_anywhere(means + i);
      const Vec<R> moved = origin + load_anywhere(differences + i) * splat(inverse[n]);
      store_anywhere(means + i, select(origin - origin == 0, moved, origin));  // an infinite one stays
    }
  }
  return true;
}

}  // namespace fastmeta::FASTMETA_ISA
