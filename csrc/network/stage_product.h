// The product of one stage, a convolution, a linear layer or a scale: its geometry, and the three forms.
#pragma once

#include "stage_phase.h"
#include "stage_scale.h"

namespace fastmeta::FASTMETA_ISA {

constexpr i64 least_channels_in_tiles = 32;

// Scratch of the products of one worker.
template <class R>
struct Room {
  Term<R>* terms;
  R* tiles;  // nullptr where nothing goes in tiles
};

template <class Team>
struct StageProduct {
  using R = typename Team::Real;
  static constexpr i64 W = Team::W;

  const Stage& s;
  i64 ld_in;        // scalars of an input pixel
  i64 ld;           // of an output pixel
  i64 ld_gradient;  // of a pixel of the input's gradient
  bool in_tiles;    // a convolution of many pixels, in Winograd's form

  // The network's own input is read element by element, so its pixels need no padding. samples: that
  // pass through it; 0 where nobody can say, and nothing goes in tiles.
  StageProduct(const Stage& stage, bool first, i64 samples = 0)
      : s(stage), ld_in(first && stage.product == ProductKind::Dense ? stage.in_c
                                                                     : Team::stride(stage.in_c)),
        ld(Team::stride(stage.c)), ld_gradient(Team::stride(stage.in_c)),
        in_tiles(may_go_in_tiles() && samples * s.h * s.w >= least_pixels()) {}

  i64 taps() const { return s.kernel[0] * s.kernel[1]; }
  bool any() const { return s.product != ProductKind::None; }
  bool moves() const { return any() && !scales(); }  // a kernel over the pixels
  // Tiles of 2 x 2 pixels gain where most of them are whole, and there are channels to add up.
  bool may_go_in_tiles() const {
    constexpr i64 least_channels = least_channels_in_tiles, least_side = 4;
    for (int axis = 0; axis < 2; ++axis)
      if (s.kernel[axis] != 3 || s.stride[axis] != 1 || s.dilation[axis] != 1) return false;
    return is_dense() && ld_in % W == 0 && s.in_c >= least_channels && s.c >= least_channels &&
           s.h >= least_side && s.w >= least_side;
  }
  // As long as they take to turn the weights, of which those beyond the second-level cache take longer.
  i64 least_pixels() const {
    return i64(sizeof(R)) * filter_size() <= i64(1) << 20 ? 80 : 200;
  }
  bool turns() const { return transposes() || in_tiles; }  // weights have a form of their own in forward()
  bool is_dense() const { return s.product == ProductKind::Dense; }
  bool spreads() const { return s.product == ProductKind::Spread; }
  bool transposes() const { return s.product == ProductKind::Transposed || spreads(); }
  bool scales() const {
    return s.product == ProductKind::Elements || s.product == ProductKind::Pixels;
  }
  bool has_whole_biases() const { return scales() || spreads(); }  // not one a channel
  i64 before(int axis) const { return moves() ? s.before[axis] : 0; }
  i64 around(int axis) const { return moves() ? s.before[axis] + s.behind[axis] : 0; }
  i64 inputs() const { return s.in_c / groups(); }  // of an output
  i64 outputs() const { return s.c / groups(); }    // of an input
  i64 filter_size() const { return taps() * inputs() * ld; }
  i64 flipped_size() const {
    if (scales()) return scale().parameters();
    if (transposes()) return taps() * larger(s.in_c * ld, s.c * ld_gradient);
    const i64 flipped = any() ? taps() * outputs() * ld_gradient : 0;
    return may_go_in_tiles() ? tile_numbers * larger(s.in_c * ld, s.c * ld_gradient) : flipped;
  }
  i64 tile_room() const {
    if (!may_go_in_tiles()) return 0;
    return FASTMETA_ISA::tile_room<R>(larger(larger(ld_in, ld_gradient), ld), s.in_c, ld);
  }

  // ---- images -----------------------------------------------------------------------------------
  // Sizes are a sample's. Input and output's gradient lie inside borders of zeros.

  i64 z_size() const { return s.h * s.w * ld; }
  i64 in_size() const { return s.in_h * s.in_w * ld_gradient; }
  i64 x_row() const { return (s.in_w + around(1)) * ld_in; }
  i64 x_size() const {
    if (transposes()) return mirrored([](const auto& m) { return m.gz_size(); });
    return (s.in_h + around(0)) * x_row();
  }
  i64 gz_row() const {
    const Border b = border();
    return (b.before[1] + s.w + b.after[1]) * ld;
  }
  i64 gz_size() const {
    if (transposes()) return mirrored([](const auto& m) { return m.x_size(); });
    const Border b = border();
    return (b.before[0] + s.h + b.after[0]) * gz_row();
  }

  Images<R> output(R* p) const { return {p, z_size(), s.w * ld, ld}; }
  Images<R> input_gradient_images(R* p) const {
    return {p, in_size(), s.in_w * ld_gradient, ld_gradient};
  }
  Images<R> bordered_input(R* p, i64 samples) const {
    if (transposes()) return mirrored([&](const auto& m) { return m.bordered_gradient(p, samples); });
    if (around(0) || around(1)) std::memset(p, 0, sizeof(R) * size_t(samples * x_size()));
    return {p + before(0) * x_row() + before(1) * ld_in, x_size(), x_row(), ld_in};
  }
  Images<R> bordered_gradient(R* p, i64 samples) const {
    if (transposes()) return mirrored([&](const auto& m) { return m.bordered_input(p, samples); });
    const Border b = border();
    if (b.before[0] || b.before[1] || b.after[0] || b.after[1])
      std::memset(p, 0, sizeof(R) * size_t(samples * gz_size()));
    return {p + b.before[0] * gz_row() + b.before[1] * ld, gz_size(), gz_row(), ld};
  }

  // ---- chunks -----------------------------------------------------------------------------------
  // Samples that stay in the second-level cache (1 MiB) with the weights, or enough of them to be
  // worth reading weights that do not. They depend on shapes alone: threads share the chunks, and
  // sums over them have a fixed order.

  i64 chunks(i64 n) const {
    constexpr i64 cached = i64(256) << 10;
    const i64 sample = i64(sizeof(R)) * (x_size() + gz_size());
    const i64 heavy = i64(sizeof(R)) * filter_size() / 4;
    const i64 together = larger(cached / sample, smaller(heavy / sample, deepest_sum / (s.h * s.w)));
    return ceil_div(n, larger(1, smaller(n, together)));
  }
  // Whether the weight gradient of n samples is one product, which ends where the gradient goes.
  bool ends_at_once(i64 n) const { return is_dense() && chunks(n) == 1; }
  i64 largest_chunk(i64 n) const { return ceil_div(n, chunks(n)); }
  // Runs of chunks: weight gradients are added up in a run, then run by run.
  static constexpr i64 most_runs = 8;
  i64 runs(i64 n) const { return smaller(most_runs, chunks(n)); }
  i64 count_terms(i64 chunk) const {
    if (transposes()) return mirrored([&](const auto& m) { return m.count_terms(chunk); });
    return FASTMETA_ISA::count_terms(s.kernel[0], s.kernel[1], larger(s.in_c, s.c), chunk * s.h);
  }

  // ---- products ---------------------------------------------------------------------------------

  Filter<R> filter(const R* w) const { return {w, s.kernel[0], s.kernel[1], inputs(), ld}; }
  Sweep sweep(i64 samples) const {
    return {samples, s.h, s.w, {s.stride[0], s.stride[1]}, {-s.before[0], -s.before[1]},
            {s.dilation[0], s.dilation[1]}};
  }

  // What weights are to be in forward() where that is not how they lie.
  void turn(R* to, const R* w) const {
    if (in_tiles) return put_weight_tiles(to, w, inputs() * ld);
    mirrored([&](const auto& m) { m.flip(to, w); });
  }

  // count 0: biases alone, of what has whole ones
  void forward(const Correlated<R>* sums, int count, i64 samples, const Images<R>& out,
               const R* bias, const Room<R>& room) const {
    if (scales()) return scale_sum(sums, count, samples, out, bias);
    if (transposes()) return transposed(sums, count, samples, out, bias, room);
    if (grouped())
      return correlate_in_groups(channels(), sums, count, sweep(samples), out, bias, room.terms);
    if (in_tiles) return correlate_in_tiles(sums, count, sweep(samples), out, bias, ld / W, room.tiles);
    Target<R> target{nullptr, 0};
    if (bias) target.finish = Finish::Bias, target.row = bias;
    correlate(sums, count, sweep(samples), out, target, ld / W, room.terms);
  }

  void add_weight_gradient(const Outer<R>* sums, int count, i64 samples, R* to,
                           const Room<R>& room) const {
    weight_gradient(sums, count, samples, {to, ld, Finish::Add}, room);
  }
  // Anything but Add is for what is dense.
  void weight_gradient(const Outer<R>* sums, int count, i64 samples, const Target<R>& to,
                       const Room<R>& room) const {
    if (scales()) {
      for (int i = 0; i < count; ++i) scale().add_gradient(samples, to.c, sums[i].g.p, sums[i].in.p);
      return;
    }
    if (transposes()) {
      Outer<R> turned[2];
      for (int i = 0; i < count; ++i) turned[i] = {sums[i].g, sums[i].in};
      return mirrored([&](const auto& m) { m.add_weight_gradient(turned, count, samples, to.c, room); });
    }
    if (grouped())
      return correlate_weights_in_groups(channels(), sums, count, sweep(samples), to.c, filter(nullptr),
                                         room.terms);
    if (in_tiles)
      return correlate_weights_in_tiles(sums, count, sweep(samples), to, inputs(), ld / W, room.tiles);
    correlate_weights(sums, count, sweep(samples), to, filter(nullptr), ld / W, room.terms);
  }

  // to += the sum over samples and pixels, or over what shares a bias.
  void add_bias_gradient(const Images<R>& g, i64 samples, R* to) const {
    if (has_whole_biases()) return scale().add_gradient(samples, to, g.p, nullptr);
    for (i64 v = 0; v < ld; v += W) {
      Vec<R> total = load(to + v);
      for (i64 i = 0; i < samples; ++i) {
        for (i64 y = 0; y < s.h; ++y) {
          Vec<R> sum{};
          for (i64 x = 0; x < s.w; ++x) sum += load(g.at(i, y, x) + v);
          total += sum;
        }
      }
      store(to + v, total);
    }
  }

  // Every phase's taps, transposed and in reverse order.
  void flip(R* to, const R* w) const {
    if (scales()) return Team::copy(to, w, flipped_size());
    if (transposes()) return Team::copy(to, w, taps() * s.c * ld_gradient);
    if (!in_tiles) return flip_taps(to, w);
    const i64 size = s.c * ld_gradient;
    R* const taps_at = to + (tile_numbers - taps()) * size;
    flip_taps(taps_at, w);
    put_weight_tiles(to, taps_at, size);
  }
  void flip_taps(R* to, const R* w) const {
    each_phase([&](const Phase& py, i64, const Phase& px, i64) {
      for (i64 r = py.taps - 1; r >= 0; --r)
        for (i64 c = px.taps - 1; c >= 0; --c, to += outputs() * ld_gradient) {
          const i64 tap = (py.tap0 + py.step * r) * s.kernel[1] + px.tap0 + px.step * c;
          transpose(to, w + tap * inputs() * ld);
        }
    });
  }

  // The gradient of the input: the sum of the output's gradients with each its flipped weights.
  void input_gradient(const Images<R>* gradients, R* const* flipped, int count, i64 n,
                      const Images<R>& out, const Room<R>& room) const {
    if (scales()) {
      for (int i = 0; i < count; ++i)
        scale().add_products(n, out.p, gradients[i].p, flipped[i], i > 0);
      return;
    }
    if (transposes()) {
      mirrored([&](const auto& m) {
        Correlated<R> sums[2];
        for (int i = 0; i < count; ++i) sums[i] = {gradients[i], m.filter(flipped[i])};
        m.forward(sums, count, n, out, nullptr, room);
      });
      return;
    }
    i64 offset = 0;
    each_phase([&](const Phase& py, i64 y, const Phase& px, i64 x) {
      const Images<R> part{out.at(0, y, x), out.sample, s.stride[0] * out.row,
                           s.stride[1] * out.pixel};
      if (!py.taps || !px.taps) return clear(part, n, py.count, px.count);
      Correlated<R> sums[2];
      for (int i = 0; i < count; ++i)
        sums[i] = {gradients[i], {flipped[i] + offset, py.taps, px.taps, outputs(), ld_gradient}};
      const Sweep phase{n,        py.count, px.count, {1, 1}, {py.first, px.first},
                        {py.apart, px.apart}};
      if (grouped()) correlate_in_groups<R>(channels().turned(), sums, count, phase, part, nullptr, room.terms);
      else if (in_tiles) correlate_in_tiles<R>(sums, count, phase, part, nullptr, ld_gradient / W, room.tiles);
      else correlate(sums, count, phase, part, {nullptr, 0}, ld_gradient / W, room.terms);
      offset += py.taps * px.taps * outputs() * ld_gradient;
    });
  }

 private:
  bool grouped() const { return s.product == ProductKind::Grouped; }
  i64 groups() const { return larger(1, s.product_groups); }
  StageScale<Team> scale() const { return {s, ld}; }
  ChannelGroups channels() const { return {groups(), inputs(), outputs()}; }

  // Of one tap: [inputs of an output][ld] as [outputs of an input][ld_gradient].
  void transpose(R* to, const R* w) const {
    if (!grouped()) return Team::transpose(to, w, s.in_c, s.c);
    for (i64 o = 0; o < outputs(); ++o)
      for (i64 i = 0; i < ld_gradient; ++i) {
        const i64 group = i / inputs(), k = i % inputs();
        to[o * ld_gradient + i] = i < s.in_c ? w[k * ld + group * outputs() + o] : 0;
      }
  }

  void scale_sum(const Correlated<R>* sums, int count, i64 samples, const Images<R>& out,
                 const R* bias) const {
    scale().fill(samples, out.p, bias);
    for (int i = 0; i < count; ++i)
      scale().add_products(samples, out.p, sums[i].in.p, sums[i].filter.w, true);
  }

  // f(the convolution whose input's gradient this is)
  template <class F>
  auto mirrored(F f) const {
    Stage m = s;
    m.product = groups() > 1 ? ProductKind::Grouped : ProductKind::Dense;
    m.in_c = s.c, m.in_h = s.h, m.in_w = s.w;
    m.c = s.in_c, m.h = s.in_h, m.w = s.in_w;
    return f(StageProduct(m, false));
  }

  void transposed(const Correlated<R>* sums, int count, i64 samples, const Images<R>& out, const R* bias,
                  const Room<R>& room) const {
    if (!count) return scale().fill(samples, out.p, bias);
    Images<R> from[2];
    R* weights[2];
    for (int i = 0; i < count; ++i)
      from[i] = sums[i].in, weights[i] = const_cast<R*>(sums[i].filter.w);
    mirrored([&](const auto& m) { m.input_gradient(from, weights, count, samples, out, room); });
    for (i64 p = 0; bias && p < samples * s.h * s.w; ++p) {
      const R* own = spreads() ? bias + p % (s.h * s.w) * ld : bias;
      for (i64 v = 0; v < ld; v += W) store(out.p + p * ld + v, load(out.p + p * ld + v) + load(own + v));
    }
  }

  struct Border {
    i64 before[2], after[2];
  };

  // What the backward reads outside of the output's gradient.
  Border border() const {
    Border b{};
    const i64 size[2] = {s.h, s.w};
    for (int axis = 0; axis < 2 && moves(); ++axis)
      for (i64 residue = 0; residue < s.stride[axis]; ++residue) {
        const Phase p = phase_of(s, axis, residue);
        if (!p.taps || !p.count) continue;
        b.before[axis] = larger(b.before[axis], -p.first);
        const i64 end = p.first + p.count + (p.taps - 1) * p.apart;
        b.after[axis] = larger(b.after[axis], end - size[axis]);
      }
    return b;
  }

  template <class F>
  void each_phase(F f) const {
    for (i64 y = 0; y < s.stride[0]; ++y)
      for (i64 x = 0; x < s.stride[1]; ++x) {
        const Phase py = phase_of(s, 0, y), px = phase_of(s, 1, x);
        if (py.count && px.count) f(py, y, px, x);
      }
  }

  void clear(const Images<R>& images, i64 n, i64 h, i64 w) const {
    for (i64 i = 0; i < n; ++i)
      for (i64 y = 0; y < h; ++y)
        for (i64 x = 0; x < w; ++x)
          std::memset(images.at(i, y, x), 0, sizeof(R) * size_t(ld_gradient));
  }
};

}  // namespace fastmeta::FASTMETA_ISA
