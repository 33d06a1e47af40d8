// Convolutions of groups of channels, each by itself.
//
// A filter is [taps][a group's inputs][ld]: beside each output channel the weights of its group's inputs. Groups
// that fill whole vectors are correlations of their own. Of others a vector holds several, of as many outputs as
// inputs, of twice or half as many: its lanes' inputs are shuffled. Up to eight pixels of a line share each load of
// a weight.
#pragma once

#include "correlation.h"

namespace fastmeta::FASTMETA_ISA {

struct ChannelGroups {
  i64 n, inputs, outputs;  // how many, and the channels of each

  ChannelGroups turned() const { return {n, outputs, inputs}; }
  template <class R>
  bool fill_vectors() const { return inputs % lanes<R> == 0 && outputs % lanes<R> == 0; }
};

// ---- the inputs of a vector's lanes -----------------------------------------------------------------
// What takes of a pixel, for lanes from channel v on, the k-th input of each lane's group.

// A channel has itself.
template <class R>
struct OwnInput {
  static constexpr bool alone = true;
  FASTMETA_INLINE Vec<R> operator()(const R* pixel, i64 v, i64) const { return load(pixel + v); }
};

// Groups of as many inputs as outputs, or of half as many: those of a vector lie in one as well.
template <class R>
struct InputOfOne {
  static constexpr bool alone = false;
  i64 outputs_an_input;
  Mask<R> first{};  // of a lane's group

  explicit InputOfOne(const ChannelGroups& g) : outputs_an_input(g.outputs / g.inputs) {
    for (int l = 0; l < lanes<R>; ++l) first[l] = l / g.outputs * g.inputs;
  }
  FASTMETA_INLINE Vec<R> operator()(const R* pixel, i64 v, i64 k) const {
    const i64 begin = v / outputs_an_input, within = begin % lanes<R>;
    const Vec<R> all = load(pixel + begin - within);
    return shuffle<R>(all, all, first + typename Simd<R>::Int(within + k));
  }
};

// Of twice as many inputs: they lie in two, of which the second has a channel where the lanes do.
template <class R>
struct InputOfTwo {
  static constexpr bool alone = false;
  i64 channels;
  Mask<R> first{};

  explicit InputOfTwo(const ChannelGroups& g) : channels(g.n * g.inputs) {
    for (int l = 0; l < lanes<R>; ++l) first[l] = l / g.outputs * g.inputs;
  }
  FASTMETA_INLINE Vec<R> operator()(const R* pixel, i64 v, i64 k) const {
    const R* begin = pixel + 2 * v;
    const Vec<R> one = load(begin), two = 2 * v + lanes<R> < channels ? load(begin + lanes<R>) : one;
    return shuffle<R>(one, two, first + typename Simd<R>::Int(k));
  }
};

// f(what takes inputs)
template <class R, class F>
void with_input(const ChannelGroups& g, F f) {
  if (g.inputs > g.outputs) f(InputOfTwo<R>(g));
  else if (g.inputs == 1 && g.outputs == 1) f(OwnInput<R>{});
  else f(InputOfOne<R>(g));
}

// f(how many, the first) for all of n
template <i64 most = 8, class F>
FASTMETA_INLINE void in_tiles(i64 n, F f, i64 i = 0) {
  for (; i + most <= n; i += most) f(std::integral_constant<i64, most>{}, i);
  if constexpr (most > 1) in_tiles<most / 2>(n, f, i);
}

template <class R>
FASTMETA_INLINE const R* input_of(const Images<R>& in, const Sweep& s, i64 i, i64 y, i64 x, i64 r, i64 c) {
  return in.at(i, y * s.step[0] + s.first[0] + r * s.apart[0], x * s.step[1] + s.first[1] + c * s.apart[1]);
}

// ---- out = bias + the sum of `n` correlations of one geometry ----------------------------------------

template <class R>
void correlate_group_by_group(const ChannelGroups& groups, const Correlated<R>* sums, int n, const Sweep& s,
                              const Images<R>& out, const R* bias, Term<R>* terms) {
  for (i64 g = 0; g < groups.n; ++g) {
    const i64 from = g * groups.inputs, to = g * groups.outputs;
    Correlated<R> own[2];
    for (int k = 0; k < n; ++k) own[k] = sums[k], own[k].in.p += from, own[k].filter.w += to;
    Images<R> part = out;
    part.p += to;
    Target<R> target{nullptr, 0};
    if (bias) target.finish = Finish::Bias, target.row = bias + to;
    correlate(own, n, s, part, target, groups.outputs / lanes<R>, terms);
  }
}

template <class R>
void correlate_in_groups(const ChannelGroups& groups, const Correlated<R>* sums, int n, const Sweep& s,
                         const Images<R>& out, const R* bias, Term<R>* terms) {
  if (groups.fill_vectors<R>()) return correlate_group_by_group(groups, sums, n, s, out, bias, terms);
  const i64 rows = sums[0].filter.rows, columns = sums[0].filter.columns;
  const i64 depth = sums[0].filter.depth, ld = sums[0].filter.ld;
  const auto tile = [&](const auto& input, auto pixels, i64 i, i64 y, i64 x, i64 v) {
    const Vec<R> start = bias ? load(bias + v) : Vec<R>{};
    Vec<R> sum[pixels()];
    for (Vec<R>& one : sum) one = start;
    for (int k = 0; k < n; ++k)
      for (i64 r = 0; r < rows; ++r)
        for (i64 c = 0; c < columns; ++c) {
          const R* from = input_of(sums[k].in, s, i, y, x, r, c);
          const R* w = sums[k].filter.w + (r * columns + c) * depth * ld + v;
          const i64 step = s.step[1] * sums[k].in.pixel;
          for (i64 d = 0; d < depth; ++d, w += ld) {
            const Vec<R> weight = load(w);
            for (i64 p = 0; p < pixels(); ++p) sum[p] += weight * input(from + p * step, v, d);
          }
        }
    for (i64 p = 0; p < pixels(); ++p) store(out.at(i, y, x + p) + v, sum[p]);
  };
  with_input<R>(groups, [&](const auto& input) {
    for (i64 i = 0; i < s.samples; ++i)
      for (i64 y = 0; y < s.h; ++y)
        for (i64 v = 0; v < ld; v += lanes<R>)
          in_tiles(s.w, [&](auto pixels, i64 x) { tile(input, pixels, i, y, x, v); });
  });
}

// ---- to[rows][columns][depth][ld] += the sum of `n` outer products of one geometry -----------------------

template <class R>
void correlate_weights_group_by_group(const ChannelGroups& groups, const Outer<R>* sums, int n, const Sweep& s,
                                      R* to, const Filter<R>& shape, Term<R>* terms) {
  for (i64 g = 0; g < groups.n; ++g) {
    Outer<R> own[2];
    for (int k = 0; k < n; ++k)
      own[k] = sums[k], own[k].in.p += g * groups.inputs, own[k].g.p += g * groups.outputs;
    correlate_weights(own, n, s, {to + g * groups.outputs, shape.ld, Finish::Add}, shape,
                      groups.outputs / lanes<R>, terms);
  }
}

template <class R>
void correlate_weights_in_groups(const ChannelGroups& groups, const Outer<R>* sums, int n, const Sweep& s, R* to,
                                 const Filter<R>& shape, Term<R>* terms) {
  if (groups.fill_vectors<R>()) return correlate_weights_group_by_group(groups, sums, n, s, to, shape, terms);
  // A tile is several inputs of a tap; or, of channels by themselves, several taps.
  const bool of_taps = groups.inputs == 1 && groups.outputs == 1;
  const i64 all = shape.rows * shape.columns, ld = shape.ld;
  const i64 taps = of_taps ? 1 : all, depth = of_taps ? all : shape.depth;
  const auto tile = [&](const auto& input, auto inputs, i64 tap, i64 v, i64 d) {
    R* w = to + (tap * depth + d) * ld + v;
    Vec<R> total[inputs()];
    for (i64 j = 0; j < inputs(); ++j) total[j] = load(w + j * ld);
    for (int k = 0; k < n; ++k) {
      const Images<R>& from = sums[k].in;
      const i64 in_step = s.step[1] * from.pixel, g_step = sums[k].g.pixel;
      i64 at[inputs()];
      for (i64 j = 0; j < inputs(); ++j) {
        const i64 own = input.alone ? d + j : tap, r = own / shape.columns, c = own % shape.columns;
        at[j] = r * s.apart[0] * from.row + c * s.apart[1] * from.pixel;
      }
      for (i64 i = 0; i < s.samples; ++i)
        for (i64 y = 0; y < s.h; ++y) {
          const R* in = input_of(from, s, i, y, 0, 0, 0);
          const R* g = sums[k].g.at(i, y, 0) + v;
          Vec<R> line[inputs()] = {};
          for (i64 x = s.w; x > 0; --x, in += in_step, g += g_step)
            for (i64 j = 0; j < inputs(); ++j) line[j] += input(in + at[input.alone ? j : 0], v, d + j) * load(g);
          for (i64 j = 0; j < inputs(); ++j) total[j] += line[j];
        }
    }
    for (i64 j = 0; j < inputs(); ++j) store(w + j * ld, total[j]);
  };
  with_input<R>(groups, [&](const auto& input) {
    for (i64 tap = 0; tap < taps; ++tap)
      for (i64 v = 0; v < ld; v += lanes<R>)
        in_tiles(depth, [&](auto inputs, i64 d) { tile(input, inputs, tap, v, d); });
  });
}

}  // namespace fastmeta::FASTMETA_ISA
