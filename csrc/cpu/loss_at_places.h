// Cross-entropy of samples that have a label at each of their places: an image's pixels, a sequence's words.
// Lanes are places where they are not tasks or samples already.
#pragma once

#include "../network/loss.h"

namespace fastmeta::FASTMETA_ISA {

template <class Team>
class CrossEntropyAtPlaces {
 public:
  using R = typename Team::Real;
  using V = Vec<R>;
  static constexpr i64 W = Team::W, together = Team::tasks == 1 ? W : 1;

  explicit CrossEntropyAtPlaces(const LabelPlaces& places) : places_(places) {}

  V value(const Row<Team>& row, i64) const {
    V sum{};
    each_group([&](i64 p, i64 n) {
      const V m = largest(row.prediction, p, n), label = take(row.target, p, 1, n);
      V exponentials{}, chosen{};
      each_class([&](i64 c) {
        const V y = at(row.prediction, c, p, n) - m;
        exponentials += exp(y);
        chosen += select(label == splat(R(c)), y, V{});
      });
      const V losses = select(label < R(0), V{}, weight(label) * (log(exponentials) - chosen));
      sum += together > 1 ? select(iota<R>() < R(n), losses, V{}) : losses;
    });
    return (together > 1 ? splat(horizontal_sum<R>(sum)) : sum) / R(places_.count);
  }

  // softmax: kept for r_gradient; 0 where the label is ignored, of which nothing comes
  void gradient(const Row<Team>& row, i64, R* g, R* softmax) const {
    each_group([&](i64 p, i64 n) {
      const V m = largest(row.prediction, p, n), label = take(row.target, p, 1, n);
      V sum{};
      each_class([&](i64 c) {
        const V e = exp(at(row.prediction, c, p, n) - m);
        put(softmax, c, p, n, e);
        sum += e;
      });
      const V scale = select(label < R(0), V{}, R(1) / sum), share = this->share(row, label);
      each_class([&](i64 c) {
        const V probability = at(softmax, c, p, n) * scale;
        put(softmax, c, p, n, probability);
        put(g, c, p, n, share * (probability - select(label == splat(R(c)), splat(R(1)), V{})));
      });
    });
    end(g);
  }

  void r_gradient(const Row<Team>& row, i64, const R* ry, const R* softmax, R* rg) const {
    each_group([&](i64 p, i64 n) {
      const V share = this->share(row, take(row.target, p, 1, n));
      V mean{};
      each_class([&](i64 c) { mean += at(softmax, c, p, n) * at(ry, c, p, n); });
      each_class([&](i64 c) {
        put(rg, c, p, n, share * at(softmax, c, p, n) * (at(ry, c, p, n) - mean));
      });
    });
    end(rg);
  }

 private:
  // f(first place, places) of those that are taken at once.
  template <class F>
  void each_group(F f) const {
    for (i64 p = 0; p < places_.count; p += together) f(p, smaller(together, places_.count - p));
  }
  template <class F>
  void each_class(F f) const {
    for (i64 c = 0; c < places_.classes; ++c) f(c);
  }
  V weight(V label) const {
    if (!places_.weights) return splat(R(1));
    V w{};
    each_class([&](i64 c) { w = select(label == splat(R(c)), splat(R(places_.weights[c])), w); });
    return w;
  }
  V share(const Row<Team>& row, V label) const { return row.coefficient / R(places_.count) * weight(label); }
  V largest(const R* y, i64 p, i64 n) const {
    V m = splat(R(-INFINITY));
    each_class([&](i64 c) { m = vmax(m, at(y, c, p, n)); });
    return m;
  }

  i64 step() const { return places_.classes_last ? places_.classes : 1; }
  i64 index(i64 c, i64 p) const { return places_.classes_last ? p * step() + c : c * places_.count + p; }
  V at(const R* row, i64 c, i64 p, i64 n) const { return take(row, index(c, p), step(), n); }

  // n numbers of a row, `step` apart; 0 in the lanes beyond them.
  static V take(const R* row, i64 first, i64 step, i64 n) {
    if constexpr (together == 1) return load(row + first * W);
    row += first;
    if (step == 1 && n == W) return load_anywhere(row);
    V v{};
    for (i64 l = 0; l < n; ++l) v[l] = row[l * step];
    return v;
  }
  void put(R* row, i64 c, i64 p, i64 n, V v) const {
    if constexpr (together == 1) return store(row + index(c, p) * W, v);
    row += index(c, p);
    if (step() == 1 && n == W) return store_anywhere(row, v);
    for (i64 l = 0; l < n; ++l) row[l * step()] = v[l];
  }
  // What fills a row's last vector is 0.
  void end(R* row) const {
    const i64 columns = places_.classes * places_.count;
    if constexpr (together > 1)
      for (i64 i = columns; i < Team::stride(columns); ++i) row[i] = 0;
  }

  const LabelPlaces& places_;
};

}  // namespace fastmeta::FASTMETA_ISA
