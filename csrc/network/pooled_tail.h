// The tail that most networks of images have, in registers: norm, a piecewise linear activation, and
// the largest of windows of 2 x 2. The steps are those of Tail; only the pixel that a window takes has
// a gradient, so most of the arithmetic is done once a window.
#pragma once

#include "tail.h"

namespace fastmeta::FASTMETA_ISA {

template <class Team>
class PooledTail {
 public:
  using R = typename Team::Real;
  using V = Vec<R>;
  static constexpr i64 W = Team::W;

  PooledTail(const StagePlan<Team>& plan, int l)
      : s_(plan.stage(l)), ld_(plan.ld(l)), row_(s_.w * ld_),
        place_{0, ld_, row_, row_ + ld_} {}

  static bool takes(const Stage& s) {
    const bool linear = !s.activates || s.activation.activation == ActivationKind::ReLU ||
                        s.activation.activation == ActivationKind::LeakyReLU;
    return linear && s.norm != NormKind::None && s.pool == PoolKind::Max && s.window[0] == 2 &&
           s.window[1] == 2 && s.pool_stride[0] == 2 && s.pool_stride[1] == 2;
  }

  void forward(const R* z, const Constants<R>& c, const Images<R>& out) const {
    with_own_activation([&](auto f) {
      each_window(c, [&](i64 i, const Channels<R>& k, i64 oy, i64 ox, i64 v) {
        V best{};
        for (int p = 0; p < 4; ++p) {
          const V value = apply(f, k, normalised(z + i, k, p));
          best = p ? select((value > best) | (value != value), value, best) : value;
        }
        store(out.at(0, oy, ox) + v, best);
      });
    });
  }

  void r_forward(const R* z, const R* rz, const Constants<R>& c, const Images<R>& out) const {
    with_own_activation([&](auto f) {
      each_window(c, [&](i64 i, const Channels<R>& k, i64 oy, i64 ox, i64 v) {
        const Window w = look(f, z + i, k);
        const V ry = r_y(chosen(w, [&](int p) { return load(rz + i + place_[p]); }), w, k);
        store(out.at(0, oy, ox) + v, w.slope * ry);
      });
    });
  }

  void backward_sums(const R* z, const R* g, const Constants<R>& c, R* sums) const {
    std::memset(sums, 0, sizeof(R) * size_t(2 * ld_));
    with_own_activation([&](auto f) {
      each_window(c, [&](i64 i, const Channels<R>& k, i64 oy, i64 ox, i64 v) {
        const Window w = look(f, z + i, k);
        const V gy = w.slope * load(above(g, oy, ox) + v);
        add(sums + v, gy);
        add(sums + ld_ + v, gy * w.best_xhat);
      });
    });
  }

  void backward(const R* z, const R* g, const Constants<R>& c, const Images<R>& gz) const {
    with_own_activation([&](auto f) {
      each_window(c, [&](i64 i, const Channels<R>& k, i64 oy, i64 ox, i64 v) {
        const Window w = look(f, z + i, k);
        const V gy = w.slope * load(above(g, oy, ox) + v);
        for (int p = 0; p < 4; ++p)
          store(gz.at(0, 2 * oy + p / 2, 2 * ox + p % 2) + v,
                z_gradient(select(w.taken[p], gy, V{}), w.xhat[p], k));
      });
    });
    each_uncovered(c, [&](i64 i, const Channels<R>& k, i64 y, i64 x, i64 v) {
      store(gz.at(0, y, x) + v, z_gradient(V{}, normalised(z + i, k, 0), k));
    });
  }

  void r_sums(const R* z, const R* rz, const R* g, const R* rg, const Constants<R>& c,
              R* sums) const {
    std::memset(sums, 0, sizeof(R) * size_t(4 * ld_));
    with_own_activation([&](auto f) {
      each_window(c, [&](i64 i, const Channels<R>& k, i64 oy, i64 ox, i64 v) {
        const Window w = look(f, z + i, k);
        const V gy = w.slope * load(above(g, oy, ox) + v);
        const V rgy = w.slope * load(above(rg, oy, ox) + v);
        const V r = chosen(w, [&](int p) { return load(rz + i + place_[p]); });
        add(sums + v, gy);
        add(sums + ld_ + v, gy * w.best_xhat);
        add(sums + 2 * ld_ + v, rgy);
        add(sums + 3 * ld_ + v, rgy * w.best_xhat + gy * r_xhat(r, w.best_xhat, k));
      });
    });
  }

  void r_backward(const R* z, const R* rz, const R* g, const R* rg, const Constants<R>& c,
                  const Images<R>& gz, const Images<R>& rgz) const {
    with_own_activation([&](auto f) {
      each_window(c, [&](i64 i, const Channels<R>& k, i64 oy, i64 ox, i64 v) {
        const Window w = look(f, z + i, k);
        const V gy = w.slope * load(above(g, oy, ox) + v);
        const V rgy = w.slope * load(above(rg, oy, ox) + v);
        for (int p = 0; p < 4; ++p)
          put_both(select(w.taken[p], gy, V{}), select(w.taken[p], rgy, V{}), w.xhat[p],
                   load(rz + i + place_[p]), k, 2 * oy + p / 2, 2 * ox + p % 2, v, gz, rgz);
      });
    });
    each_uncovered(c, [&](i64 i, const Channels<R>& k, i64 y, i64 x, i64 v) {
      put_both(V{}, V{}, normalised(z + i, k, 0), load(rz + i), k, y, x, v, gz, rgz);
    });
  }

 private:
  struct Window {
    V xhat[4];
    Mask<R> taken[4];  // the first of the largest
    V best_xhat, slope;
  };

  template <class F>
  FASTMETA_INLINE void with_own_activation(F f) const {
    if (!s_.activates) return f(NoActivation<R>{});
    if (s_.activation.activation == ActivationKind::ReLU) return f(ReLU<R>{});
    LeakyReLU<R> leaky;
    leaky.slope = R(s_.activation.a);
    f(leaky);
  }

  // f(scalar of the window's first pixel, constants, window, channel)
  template <class F>
  FASTMETA_INLINE void each_window(const Constants<R>& c, F f) const {
    for (i64 oy = 0; oy < s_.out_h; ++oy)
      for (i64 v = 0; v < ld_; v += W) {
        const Channels<R> k(c, v);
        for (i64 ox = 0; ox < s_.out_w; ++ox)
          f(2 * oy * row_ + 2 * ox * ld_ + v, k, oy, ox, v);
      }
  }

  // f(scalar of the pixel, constants, pixel, channel) for the pixels of no window.
  template <class F>
  FASTMETA_INLINE void each_uncovered(const Constants<R>& c, F f) const {
    for (i64 v = 0; v < ld_; v += W) {
      const Channels<R> k(c, v);
      for (i64 y = 0; y < s_.h; ++y)
        for (i64 x = y < 2 * s_.out_h ? 2 * s_.out_w : 0; x < s_.w; ++x)
          f(y * row_ + x * ld_ + v, k, y, x, v);
    }
  }

  const R* above(const R* g, i64 oy, i64 ox) const { return g + (oy * s_.out_w + ox) * ld_; }
  static FASTMETA_INLINE void add(R* to, V value) { store(to, load(to) + value); }

  FASTMETA_INLINE V normalised(const R* z, const Channels<R>& k, int p) const {
    return (load(z + place_[p]) - k.mean) * k.s;
  }
  template <class F>
  static FASTMETA_INLINE V apply(const F& f, const Channels<R>& k, V xhat) {
    V s1, s2;
    return f.apply(k.gamma * xhat + k.beta, s1, s2);
  }

  template <class F>
  FASTMETA_INLINE Window look(const F& f, const R* z, const Channels<R>& k) const {
    Window w;
    V value[4];
    for (int p = 0; p < 4; ++p) {
      w.xhat[p] = normalised(z, k, p);
      value[p] = apply(f, k, w.xhat[p]);
    }
    const V best = vmax(vmax(value[0], value[1]), vmax(value[2], value[3]));
    Mask<R> left = Mask<R>{} == Mask<R>{};
    for (int p = 0; p < 4; ++p) {
      w.taken[p] = (value[p] == best) & left;
      left &= ~w.taken[p];
    }
    w.best_xhat = chosen(w, [&](int p) { return w.xhat[p]; });
    w.slope = f.first(best, V{});
    return w;
  }

  // Of four values, that of the pixel that the window takes.
  template <class F>
  static FASTMETA_INLINE V chosen(const Window& w, F of) {
    V result = of(3);
    for (int p = 2; p >= 0; --p) result = select(w.taken[p], of(p), result);
    return result;
  }

  static FASTMETA_INLINE V r_xhat(V rz, V xhat, const Channels<R>& k) {
    return k.s * (rz - k.r_mean - xhat * k.m);
  }
  static FASTMETA_INLINE V r_y(V rz, const Window& w, const Channels<R>& k) {
    return k.gamma * r_xhat(rz, w.best_xhat, k) + k.r_gamma * w.best_xhat + k.r_beta;
  }
  static FASTMETA_INLINE V z_gradient(V gy, V xhat, const Channels<R>& k) {
    return k.s * (k.gamma * gy - k.a - xhat * k.b);
  }

  static FASTMETA_INLINE void put_both(V gy, V rgy, V xhat, V rz, const Channels<R>& k, i64 y, i64 x,
                                       i64 v, const Images<R>& gz, const Images<R>& rgz) {
    const V plain = z_gradient(gy, xhat, k);
    const V change = k.r_gamma * gy + k.gamma * rgy - k.ra - r_xhat(rz, xhat, k) * k.b -
                     xhat * k.rb;
    store(gz.at(0, y, x) + v, plain);
    store(rgz.at(0, y, x) + v, k.s * (change - k.m * plain));
  }

  const Stage& s_;
  i64 ld_, row_;
  i64 place_[4];
};

}  // namespace fastmeta::FASTMETA_ISA
