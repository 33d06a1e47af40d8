// A stage of two others: of images a [h][w][ld] and of b, which are added, multiplied or put beside them; or
// of a alone, whose pixels it repeats, or of whose channels it picks some.
//
// Where they are added or multiplied b may have one channel, row or column that stands for all of a's.
#pragma once

#include "stage_product.h"

namespace fastmeta::FASTMETA_ISA {

template <class Team>
struct StageJoin {
  using R = typename Team::Real;
  using V = Vec<R>;
  static constexpr i64 W = Team::W;

  const Stage& s;
  bool multiplies() const { return s.join == JoinKind::Multiply; }
  bool reads_one() const { return s.join == JoinKind::Repeat || picks(); }
  bool adds_alike() const {
    return s.join == JoinKind::Sum && s.other_c == s.c && s.other_h == s.h && s.other_w == s.w;
  }
  bool puts_beside() const { return s.join == JoinKind::Channels; }

  Images<R> others(R* p) const {
    const i64 pixel = Team::stride(s.other_c), row = s.other_w * pixel;
    return {p, s.other_h * row, row, pixel};
  }

  // z holds a already; of a product with `add` it becomes z + a b instead.
  void join(const Images<R>& z, const Images<R>& b, i64 n) const {
    switch (s.join) {
      case JoinKind::None:
      case JoinKind::Repeat: case JoinKind::Pick:
        return;
      case JoinKind::Sum:
        return each(n, z, b, [](R* to, V other) { store(to, load(to) + other); });
      case JoinKind::Multiply:
        return each(n, z, b, [](R* to, V other) { store(to, load(to) * other); });
      case JoinKind::Channels:
        return each_pixel(n, [&](i64 i, i64 y, i64 x) { put_beside(z.at(i, y, x), b.at(i, y, x)); });
    }
  }

  // z += a b
  void add_product(const Images<R>& z, const Images<R>& a, const Images<R>& b, i64 n) const {
    each_pixel(n, [&](i64 i, i64 y, i64 x) {
      R* to = z.at(i, y, x);
      const R *from = a.at(i, y, x), *other = at(b, i, y, x);
      for (i64 v = 0; v < Team::stride(s.c); v += W)
        store(to + v, load(to + v) + load(from + v) * value(other, v));
    });
  }

  // g_b += the sum over what shares a number of b: of g a, or without a of g
  void add_to_other(const Images<R>& g_b, const Images<R>& g, const Images<R>* a, i64 n) const {
    each_pixel(n, [&](i64 i, i64 y, i64 x) {
      R* to = at(g_b, i, y, x);
      const R *gradient = g.at(i, y, x), *from = a ? a->at(i, y, x) : nullptr;
      V sum{};
      for (i64 v = 0; v < Team::stride(s.c); v += W) {
        const V product = from ? load(gradient + v) * load(from + v) : load(gradient + v);
        if (!one_channel()) store(to + v, load(to + v) + product);
        else sum += select(Team::valid(v / W, s.c), product, V{});
      }
      if (one_channel()) to[0] += horizontal_sum<R>(sum);
    });
  }

  // The gradients of a's and b's channels, out of those of both side by side.
  void part(const Images<R>& g, const Images<R>& g_a, const Images<R>& g_b, i64 n) const {
    each_pixel(n, [&](i64 i, i64 y, i64 x) {
      const R* from = g.at(i, y, x);
      take_channels(g_a.at(i, y, x), from, s.in_c);
      take_channels(g_b.at(i, y, x), from + s.in_c, s.other_c);
    });
  }

  // z = a, each pixel as often as it goes into z's; or some of its channels.
  void take_one(const Images<R>& z, const Images<R>& a, i64 n) const {
    each_pixel(n, [&](i64 i, i64 y, i64 x) {
      if (picks()) take_channels(z.at(i, y, x), a.at(i, y, x) + s.other_c, s.c);
      else std::memcpy(z.at(i, y, x), under(a, i, y, x), sizeof(R) * size_t(Team::stride(s.c)));
    });
  }
  // g_a += the sum of g over the numbers that are one of a's.
  void add_to_one(const Images<R>& g_a, const Images<R>& g, i64 n) const {
    each_pixel(n, [&](i64 i, i64 y, i64 x) {
      const R* from = g.at(i, y, x);
      if (picks()) {
        R* to = g_a.at(i, y, x) + s.other_c;
        for (i64 c = 0; c < s.c; ++c) to[c] += from[c];
        return;
      }
      R* to = under(g_a, i, y, x);
      for (i64 v = 0; v < Team::stride(s.c); v += W) store(to + v, load(to + v) + load(from + v));
    });
  }

 private:
  bool picks() const { return s.join == JoinKind::Pick; }
  R* under(const Images<R>& a, i64 i, i64 y, i64 x) const {
    return a.at(i, y / (s.h / s.in_h), x / (s.w / s.in_w));
  }
  bool one_channel() const { return s.other_c == 1 && s.c > 1; }
  R* at(const Images<R>& b, i64 i, i64 y, i64 x) const {
    return b.at(i, s.other_h == 1 ? 0 : y, s.other_w == 1 ? 0 : x);
  }
  FASTMETA_INLINE V value(const R* other, i64 v) const {
    return one_channel() ? splat(other[0]) : load(other + v);
  }

  void put_beside(R* to, const R* other) const {
    const i64 end = Team::stride(s.c);
    std::memcpy(to + s.in_c, other, sizeof(R) * size_t(s.other_c));
    for (i64 c = s.c; c < end; ++c) to[c] = 0;
  }
  static void take_channels(R* to, const R* from, i64 channels) {
    std::memcpy(to, from, sizeof(R) * size_t(channels));
    for (i64 c = channels; c < Team::stride(channels); ++c) to[c] = 0;
  }

  template <class F>
  FASTMETA_INLINE void each_pixel(i64 n, F f) const {
    for (i64 i = 0; i < n; ++i)
      for (i64 y = 0; y < s.h; ++y)
        for (i64 x = 0; x < s.w; ++x) f(i, y, x);
  }
  // f(vector of z, b there)
  template <class F>
  FASTMETA_INLINE void each(i64 n, const Images<R>& z, const Images<R>& b, F f) const {
    each_pixel(n, [&](i64 i, i64 y, i64 x) {
      R* to = z.at(i, y, x);
      const R* other = at(b, i, y, x);
      for (i64 v = 0; v < Team::stride(s.c); v += W) f(to + v, value(other, v));
    });
  }
};

}  // namespace fastmeta::FASTMETA_ISA
