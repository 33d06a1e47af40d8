// Element by element z = w x + b, as the affine part of a layer norm over images is.
//
// Images are whole: a sample is [h * w][ld]. Parameters are [h * w][ld], or with ProductKind::Pixels
// [h * w][W] with one value a row, for all channels.
#pragma once

namespace fastmeta::FASTMETA_ISA {

template <class Team>
struct StageScale {
  using R = typename Team::Real;
  using V = Vec<R>;
  static constexpr i64 W = Team::W;

  const Stage& s;
  i64 ld;

  i64 pixels() const { return s.h * s.w; }
  bool of_pixels() const { return s.product == ProductKind::Pixels; }
  i64 parameters() const { return pixels() * (of_pixels() ? W : ld); }

  // out = b, or zeros without one.
  void fill(i64 n, R* out, const R* b) const {
    each(n, [&](i64 i, i64 p, i64 v) { store(out + i, b ? value(b, p, v) : V{}); });
  }

  // out = w x, or with `add` out += w x.
  void add_products(i64 n, R* out, const R* x, const R* w, bool add) const {
    each(n, [&](i64 i, i64 p, i64 v) {
      const V product = value(w, p, v) * load(x + i);
      store(out + i, add ? load(out + i) + product : product);
    });
  }

  // to += the sum of g x over all that shares a parameter, without x that of g.
  void add_gradient(i64 n, R* to, const R* g, const R* x) const {
    for (i64 p = 0; p < pixels(); ++p)
      for (i64 v = 0; v < ld; v += W) {
        V sum{};
        for (i64 i = p * ld + v; i < n * pixels() * ld; i += pixels() * ld)
          sum += x ? load(g + i) * load(x + i) : load(g + i);
        if (of_pixels())
          to[p * W] += horizontal_sum<R>(select(Team::valid(v / W, s.c), sum, V{}));
        else
          store(to + p * ld + v, load(to + p * ld + v) + sum);
      }
  }

 private:
  FASTMETA_INLINE V value(const R* parameter, i64 p, i64 v) const {
    return of_pixels() ? splat(parameter[p * W]) : load(parameter + p * ld + v);
  }

  // f(scalar, its pixel, its channel)
  template <class F>
  FASTMETA_INLINE void each(i64 n, F f) const {
    for (i64 i = 0; i < n * pixels(); ++i)
      for (i64 v = 0; v < ld; v += W) f(i * ld + v, i % pixels(), v);
  }
};

}  // namespace fastmeta::FASTMETA_ISA
