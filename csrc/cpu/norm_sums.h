// Sums over the pixels of a channel. A few numbers are added up in their own precision, those sums in
// double precision; the order depends on shapes alone.
#pragma once

#include "image_lanes.h"

namespace fastmeta::FASTMETA_ISA {

// What one vector adds to N sums.
template <class R, int N>
struct Terms {
  Vec<R> v[N];

  FASTMETA_INLINE Terms operator+(const Terms& other) const {
    Terms sum;
    for (int k = 0; k < N; ++k) sum.v[k] = v[k] + other.v[k];
    return sum;
  }
  template <class L>
  FASTMETA_INLINE Terms counted(L lanes) const {
    Terms some;
    for (int k = 0; k < N; ++k) some.v[k] = lanes.counted(v[k]);
    return some;
  }
};

template <class R, int N>
class Sums {
  static constexpr int W = lanes<R>, most = 16;

 public:
  FASTMETA_INLINE void add(const Terms<R, N>& terms) {
    now_ = now_ + terms;
    if (++count_ == most) settle();
  }
  // Of every lane; of all lanes in each, where these are pixels.
  template <class Along>
  const double (*total(const Along& along))[W] {
    settle();
    for (auto& sum : totals_) along.across(sum);
    return totals_;
  }

 private:
  FASTMETA_INLINE void settle() {
    for (int k = 0; k < N; ++k) {
      R sums[W];
      std::memcpy(sums, &now_.v[k], sizeof sums);
      for (int l = 0; l < W; ++l) totals_[k][l] += double(sums[l]);
      now_.v[k] = Vec<R>{};
    }
    count_ = 0;
  }

  Terms<R, N> now_{};
  int count_ = 0;
  double totals_[N][W] = {};
};

// Mean and sum of squared deviations of n numbers, of each lane (Chan, Golub, LeVeque 1979).
template <class R>
struct Moments {
  static constexpr int W = lanes<R>;
  double n = 0, mean[W] = {}, squares[W] = {};

  void merge(const Moments& other) {
    const double share = other.n / (n + other.n);
    for (int l = 0; l < W; ++l) {
      const double shift = other.mean[l] - mean[l];
      mean[l] += shift * share;
      squares[l] += other.squares[l] + shift * shift * n * share;
    }
    n += other.n;
  }
};

// Of samples that stay in the first-level cache while they are read twice: for a rough mean, and
// for the differences to it, which a common offset costs nothing.
template <class R, class Along>
Moments<R> moments_of(const Batch<R>& x, const Along& along, i64 task, i64 channel, i64 first,
                      i64 n) {
  using V = Vec<R>;
  constexpr int W = lanes<R>;
  const double share = 1 / double(n * along.h * along.w);
  const auto over = [&](auto& sums, auto f) {
    for (i64 i = first; i < first + n; ++i)
      along.sum(image_of(x, task, i, channel), f, [&](const auto& terms) { sums.add(terms); });
  };
  alignas(sizeof(V)) R rough[W];
  {
    Sums<R, 1> sums;
    over(sums, [](V v) { return Terms<R, 1>{{v}}; });
    const auto* total = sums.total(along);
    for (int l = 0; l < W; ++l) rough[l] = R(total[0][l] * share);
  }
  Sums<R, 2> sums;
  const V shift = load(rough);
  over(sums, [shift](V v) {
    const V d = v - shift;
    return Terms<R, 2>{{d, d * d}};
  });
  const auto* total = sums.total(along);
  Moments<R> moments;
  moments.n = double(n * along.h * along.w);
  for (int l = 0; l < W; ++l) {
    const double d = total[0][l] * share, squares = total[1][l] - total[0][l] * d;
    moments.mean[l] = double(rough[l]) + d;
    moments.squares[l] = squares < 0 ? 0 : squares;  // a NaN stays one
  }
  return moments;
}

}  // namespace fastmeta::FASTMETA_ISA
