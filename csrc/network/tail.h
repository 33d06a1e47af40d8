// What follows the product of a stage: norm, activation and pool, for one sample at a time.
//
// Nothing but the product z is kept. Forward, backward and R-pass begin with z and recompute a row of
// windows at a time in the cache:
//
//   xhat = (z - mean) s,  y = gamma xhat + beta,  value = activation(y),  out = pool(value)
//
// With the means over the norm's set of pixels, m = mean(xhat Rz), a = mean(gamma g), b = mean(gamma
// g xhat), Ra and Rb their derivatives:
//
//   Rxhat = s (Rz - Rmean - xhat m)
//   gz    = s (gamma g - a - xhat b)
//   Rgz   = -s m gz + s (Rgamma g + gamma Rg - Ra - Rxhat b - xhat Rb)
#pragma once

#include "stage_plan.h"

namespace fastmeta::FASTMETA_ISA {

// A value a channel, each [ld].
template <class R>
struct Constants {
  const R *mean, *s, *gamma, *beta;
  const R *r_mean, *m, *r_gamma, *r_beta;
  const R *a, *b, *ra, *rb;
};

// The same of one vector of channels, in registers.
template <class R>
struct Channels {
  Vec<R> mean, s, gamma, beta, r_mean, m, r_gamma, r_beta, a, b, ra, rb;
  Channels(const Constants<R>& c, i64 v)
      : mean(load(c.mean + v)), s(load(c.s + v)), gamma(load(c.gamma + v)), beta(load(c.beta + v)),
        r_mean(load(c.r_mean + v)), m(load(c.m + v)), r_gamma(load(c.r_gamma + v)),
        r_beta(load(c.r_beta + v)), a(load(c.a + v)), b(load(c.b + v)), ra(load(c.ra + v)),
        rb(load(c.rb + v)) {}
};

template <class R>
struct NoActivation {
  static constexpr bool keeps_s1 = false, keeps_s2 = false, curved = false;
  FASTMETA_INLINE Vec<R> apply(Vec<R> z, Vec<R>&, Vec<R>&) const { return z; }
  FASTMETA_INLINE Vec<R> first(Vec<R>, Vec<R>) const { return splat(R(1)); }
  FASTMETA_INLINE Vec<R> second(Vec<R>, Vec<R>, Vec<R>) const { return Vec<R>{}; }
};

template <class Team>
class Tail {
 public:
  using R = typename Team::Real;
  using V = Vec<R>;
  static constexpr i64 W = Team::W;

  // rows: scratch for 7 blocks.
  Tail(const StagePlan<Team>& plan, int l, R* rows)
      : s_(plan.stage(l)), ld_(plan.ld(l)), overlaps_(plan.overlaps(l)),
        normed_(s_.norm != NormKind::None) {
    const i64 block = round_up(plan.block_size, 64 / i64(sizeof(R)));
    R** buffers[] = {&xhat_, &value_, &d1_, &d2_, &ry_, &gy_, &rgy_};
    for (R** buffer : buffers) *buffer = rows, rows += block;
  }

  void forward(const R* z, const Constants<R>& c, const Images<R>& out) {
    each_pooled([&](const Block& b) {
      const bool direct = s_.pool == PoolKind::None && out.pixel == ld_;
      R* value = direct ? out.at(0, b.oy, 0) : value_;
      activate<0>(z + b.row * row(), c, b.rows * s_.w, value);
      if (!direct) pool(b, value, value, out);
    });
  }

  // The derivative of forward along (rz, and the derivatives of the norm's parameters).
  void r_forward(const R* z, const R* rz, const Constants<R>& c, const Images<R>& out) {
    each_pooled([&](const Block& b) {
      const i64 at = b.row * row(), pixels = b.rows * s_.w;
      activate<1>(z + at, c, pixels, value_);
      r_normalise(rz + at, c, pixels);
      for (i64 i = 0; i < pixels * ld_; i += W) store(ry_ + i, load(d1_ + i) * load(ry_ + i));
      pool(b, value_, ry_, out);
    });
  }

  // sums[0] = sum of g, sums[1] = sum of g xhat, over this sample; g is that of y.
  void backward_sums(const R* z, const R* g, const Constants<R>& c, R* sums) {
    zero(sums, 2 * ld_);
    each_block([&](const Block& b) {
      gradient_of_y(z + b.row * row(), g, b, c);
      add_sums(sums, sums + ld_, gy_, b.rows * s_.w);
    });
  }

  void backward(const R* z, const R* g, const Constants<R>& c, const Images<R>& gz) {
    each_block([&](const Block& b) {
      gradient_of_y(z + b.row * row(), g, b, c);
      each_pixel(b, gz, c, [&](i64 i, const Channels<R>& k, R* to) {
        store(to, z_gradient(i, k));
      });
    });
  }

  // The sums of backward_sums, then sum of Rg, and of Rg xhat + g Rxhat.
  void r_sums(const R* z, const R* rz, const R* g, const R* rg, const Constants<R>& c, R* sums) {
    zero(sums, 4 * ld_);
    each_block([&](const Block& b) {
      const i64 at = b.row * row(), pixels = b.rows * s_.w;
      r_gradient_of_y(z + at, rz + at, g, rg, b, c);
      add_sums(sums, sums + ld_, gy_, pixels);
      add_sums(sums + 2 * ld_, sums + 3 * ld_, rgy_, pixels);
      for (i64 v = 0; v < ld_; v += W) {
        const Channels<R> k(c, v);
        V sum = load(sums + 3 * ld_ + v);
        for (i64 i = v; i < pixels * ld_; i += ld_)
          sum += load(gy_ + i) * r_xhat(load(rz + at + i), i, k);
        store(sums + 3 * ld_ + v, sum);
      }
    });
  }

  void r_backward(const R* z, const R* rz, const R* g, const R* rg, const Constants<R>& c,
                  const Images<R>& gz, const Images<R>& rgz) {
    each_block([&](const Block& b) {
      const i64 at = b.row * row();
      r_gradient_of_y(z + at, rz + at, g, rg, b, c);
      each_pixel(b, rgz, c, [&](i64 i, const Channels<R>& k, R* to) {
        store(to, normed_ ? r_z_gradient(load(rz + at + i), i, k) : load(rgy_ + i));
      });
      each_pixel(b, gz, c, [&](i64 i, const Channels<R>& k, R* to) {
        store(to, z_gradient(i, k));
      });
    });
  }

 private:
  // Rows of z, and the rows of windows, from oy on, that are in them.
  struct Block {
    i64 oy, windows, row, rows;
  };

  i64 row() const { return s_.w * ld_; }
  i64 first_row(i64 oy) const { return oy * s_.pool_stride[0]; }
  static void zero(R* p, i64 n) { std::memset(p, 0, sizeof(R) * size_t(n)); }

  // One row of windows after another, and together all of z. Where windows share rows, all at once.
  template <class F>
  FASTMETA_INLINE void each_block(F f) {
    if (overlaps_) return f(Block{0, s_.out_h, 0, s_.h});
    for (i64 oy = 0; oy < s_.out_h; ++oy) {
      const i64 begin = first_row(oy), end = oy + 1 < s_.out_h ? first_row(oy + 1) : s_.h;
      f(Block{oy, 1, begin, end - begin});
    }
  }
  // The same without the rows that no window covers.
  template <class F>
  FASTMETA_INLINE void each_pooled(F f) {
    if (overlaps_) return f(Block{0, s_.out_h, 0, s_.h});
    for (i64 oy = 0; oy < s_.out_h; ++oy) f(Block{oy, 1, first_row(oy), s_.window[0]});
  }

  // f(scalar in the block, its channels' constants), channels outside: their constants stay in
  // registers.
  template <class F>
  FASTMETA_INLINE void each(i64 pixels, const Constants<R>& c, F f) const {
    for (i64 v = 0; v < ld_; v += W) {
      const Channels<R> k(c, v);
      for (i64 i = v; i < pixels * ld_; i += ld_) f(i, k);
    }
  }
  // The same, and where it lies in an image.
  template <class F>
  FASTMETA_INLINE void each_pixel(const Block& b, const Images<R>& images, const Constants<R>& c,
                                  F f) const {
    for (i64 v = 0; v < ld_; v += W) {
      const Channels<R> k(c, v);
      for (i64 y = 0; y < b.rows; ++y) {
        R* to = images.at(0, b.row + y, 0) + v;
        const i64 begin = y * row() + v;
        for (i64 x = 0; x < s_.w; ++x) f(begin + x * ld_, k, to + x * images.pixel);
      }
    }
  }

  // ---- norm and activation --------------------------------------------------------------------

  template <class F>
  FASTMETA_INLINE void with_own_activation(F f) const {
    if (s_.activates)
      with_activation<R>(s_.activation, f);
    else
      f(NoActivation<R>{});
  }

  template <int derivatives>
  void activate(const R* z, const Constants<R>& c, i64 pixels, R* value) {
    with_own_activation([&](auto f) {
      each(pixels, c, [&](i64 i, const Channels<R>& k) {
        V y = load(z + i);
        if (normed_) {
          y = (y - k.mean) * k.s;
          if (derivatives) store(xhat_ + i, y);
          y = k.gamma * y + k.beta;
        }
        V s1{}, s2{};
        const V out = f.apply(y, s1, s2);
        store(value + i, out);
        if (derivatives > 0) store(d1_ + i, f.first(out, s1));
        if (derivatives > 1) store(d2_ + i, f.second(out, s1, s2));
      });
    });
  }

  FASTMETA_INLINE V r_xhat(V rz, i64 i, const Channels<R>& k) const {
    return k.s * (rz - k.r_mean - load(xhat_ + i) * k.m);
  }

  // Ry
  void r_normalise(const R* rz, const Constants<R>& c, i64 pixels) {
    if (!normed_) {
      std::memcpy(ry_, rz, sizeof(R) * size_t(pixels * ld_));
      return;
    }
    each(pixels, c, [&](i64 i, const Channels<R>& k) {
      store(ry_ + i,
            k.gamma * r_xhat(load(rz + i), i, k) + k.r_gamma * load(xhat_ + i) + k.r_beta);
    });
  }

  // ---- gradients ------------------------------------------------------------------------------

  void gradient_of_y(const R* z, const R* g, const Block& b, const Constants<R>& c) {
    const i64 pixels = b.rows * s_.w;
    activate<1>(z, c, pixels, value_);
    unpool(b, g, gy_);
    for (i64 i = 0; i < pixels * ld_; i += W) store(gy_ + i, load(gy_ + i) * load(d1_ + i));
  }

  void r_gradient_of_y(const R* z, const R* rz, const R* g, const R* rg, const Block& b,
                       const Constants<R>& c) {
    const i64 pixels = b.rows * s_.w;
    activate<2>(z, c, pixels, value_);
    r_normalise(rz, c, pixels);
    unpool(b, g, gy_);
    unpool(b, rg, rgy_);
    for (i64 i = 0; i < pixels * ld_; i += W) {
      const V above = load(gy_ + i), d1 = load(d1_ + i);
      store(rgy_ + i, load(rgy_ + i) * d1 + above * load(d2_ + i) * load(ry_ + i));
      store(gy_ + i, above * d1);
    }
  }

  FASTMETA_INLINE V z_gradient(i64 i, const Channels<R>& k) const {
    const V g = load(gy_ + i);
    return normed_ ? k.s * (k.gamma * g - k.a - load(xhat_ + i) * k.b) : g;
  }

  FASTMETA_INLINE V r_z_gradient(V rz, i64 i, const Channels<R>& k) const {
    const V change = k.r_gamma * load(gy_ + i) + k.gamma * load(rgy_ + i) - k.ra -
                     r_xhat(rz, i, k) * k.b - load(xhat_ + i) * k.rb;
    return k.s * (change - k.m * z_gradient(i, k));
  }

  void add_sums(R* plain, R* with_xhat, const R* g, i64 pixels) const {
    for (i64 v = 0; v < ld_; v += W) {
      V sum{}, product{};
      for (i64 p = 0; p < pixels; ++p) {
        const V value = load(g + p * ld_ + v);
        sum += value;
        product += value * load(xhat_ + p * ld_ + v);
      }
      store(plain + v, load(plain + v) + sum);
      store(with_xhat + v, load(with_xhat + v) + product);
    }
  }

  // ---- pool -----------------------------------------------------------------------------------

  // A window's place in a block, without what lies outside of the image.
  struct Window {
    i64 y, y_end, x, x_end;
  };

  // f(window, its row, its index in it, channel) for every window and channel of the block.
  template <class F>
  FASTMETA_INLINE void each_window(const Block& b, F f) const {
    for (i64 oy = b.oy; oy < b.oy + b.windows; ++oy) {
      const i64 y = oy * s_.pool_stride[0] - s_.pool_before[0];
      for (i64 ox = 0; ox < s_.out_w; ++ox) {
        const i64 x = ox * s_.pool_stride[1] - s_.pool_before[1];
        const Window w{larger(y, 0) - b.row, smaller(y + s_.window[0], s_.h) - b.row, larger(x, 0),
                       smaller(x + s_.window[1], s_.w)};
        for (i64 v = 0; v < ld_; v += W) f(w, oy, ox, v);
      }
    }
  }
  // f(scalar in the block)
  template <class F>
  FASTMETA_INLINE void each_place(const Window& w, i64 v, F f) const {
    for (i64 y = w.y; y < w.y_end; ++y)
      for (i64 x = w.x; x < w.x_end; ++x) f(y * row() + x * ld_ + v);
  }
  // Pixels outside of the image are in a mean as zeros.
  R pixels() const { return R(s_.window[0] * s_.window[1]); }

  // Of `taken`, what pooling `value` takes: its largest element's, or the mean.
  void pool(const Block& b, const R* value, const R* taken, const Images<R>& out) const {
    if (s_.pool == PoolKind::Max)
      each_window(b, [&](const Window& w, i64 oy, i64 ox, i64 v) {
        const i64 begin = w.y * row() + w.x * ld_ + v;
        V best = load(value + begin), result = load(taken + begin);
        each_place(w, v, [&](i64 i) {
          const V candidate = load(value + i);
          const auto better = (candidate > best) | (candidate != candidate);
          best = select(better, candidate, best);
          result = select(better, load(taken + i), result);
        });
        store(out.at(0, oy, ox) + v, result);
      });
    else
      each_window(b, [&](const Window& w, i64 oy, i64 ox, i64 v) {
        V sum{};
        for (i64 y = w.y; y < w.y_end; ++y) {  // line by line: one running sum loses more
          V line{};
          for (i64 x = w.x; x < w.x_end; ++x) line += load(taken + y * row() + x * ld_ + v);
          sum += line;
        }
        store(out.at(0, oy, ox) + v, sum / pixels());
      });
  }

  // The windows' gradients to the pixels that they came from; the first of equals gets it.
  void unpool(const Block& b, const R* g, R* to) const {
    const auto above = [&](i64 oy, i64 ox, i64 v) { return load(g + (oy * s_.out_w + ox) * ld_ + v); };
    if (s_.pool == PoolKind::None) {
      std::memcpy(to, g + b.oy * s_.out_w * ld_, sizeof(R) * size_t(b.rows * row()));
      return;
    }
    zero(to, b.rows * row());
    if (s_.pool == PoolKind::Max)
      each_window(b, [&](const Window& w, i64 oy, i64 ox, i64 v) {
        V best = load(value_ + w.y * row() + w.x * ld_ + v);
        each_place(w, v, [&](i64 i) { best = vmax(load(value_ + i), best); });
        V left = above(oy, ox, v);
        each_place(w, v, [&](i64 i) {
          const auto here = load(value_ + i) == best;
          store(to + i, load(to + i) + select(here, left, V{}));
          left = select(here, V{}, left);
        });
      });
    else
      each_window(b, [&](const Window& w, i64 oy, i64 ox, i64 v) {
        const V part = above(oy, ox, v) / pixels();
        each_place(w, v, [&](i64 i) { store(to + i, load(to + i) + part); });
      });
  }

  const Stage& s_;
  i64 ld_;
  bool overlaps_, normed_;
  R *xhat_, *value_, *d1_, *d2_, *ry_, *gy_, *rgy_;
};

}  // namespace fastmeta::FASTMETA_ISA
