// A convolution of each channel by itself.
//
// The weight is [taps][ld]. A vector is neighbouring channels of a pixel; four pixels of a line share each
// load of a weight.
#pragma once

#include "stage_phase.h"

namespace fastmeta::FASTMETA_ISA {

template <class Team>
struct StageDepthwise {
  using R = typename Team::Real;
  using V = Vec<R>;
  static constexpr i64 W = Team::W;

  const Stage& s;
  i64 ld;

  // out = bias + the sum of the inputs, each with its weight
  void forward(const Correlated<R>* sums, int count, const Sweep& sweep, const Images<R>& out,
               const R* bias) const {
    each_line(sweep.samples, sweep.h, [&](i64 i, i64 y, i64 v) {
      const V start = bias ? load(bias + v) : V{};
      along(sweep.w, [&](auto pixels, i64 x) {
        V sum[pixels()];
        for (V& one : sum) one = start;
        for (int k = 0; k < count; ++k)
          each_tap([&](i64 r, i64 c) {
            const R* from = input(sums[k].in, sweep, i, y, x, r, c) + v;
            add(sum, load(sums[k].filter.w + tap(r, c) + v), from, sweep.step[1] * sums[k].in.pixel);
          });
        put(sum, out.at(i, y, x) + v, out.pixel);
      });
    });
  }

  void add_weight_gradient(const Outer<R>& o, const Sweep& sweep, R* to) const {
    each_tap([&](i64 r, i64 c) {
      for (i64 v = 0; v < ld; v += W) {
        V total = load(to + tap(r, c) + v);
        for (i64 i = 0; i < sweep.samples; ++i)
          for (i64 y = 0; y < sweep.h; ++y) {
            const R* in = input(o.in, sweep, i, y, 0, r, c) + v;
            const R* g = o.g.at(i, y, 0) + v;
            V sum{};
            for (i64 x = 0; x < sweep.w; ++x)
              sum += load(in + x * sweep.step[1] * o.in.pixel) * load(g + x * o.g.pixel);
            total += sum;
          }
        store(to + tap(r, c) + v, total);
      }
    });
  }

  // The pixels of one phase: the sum of the output's gradients, each with its weight.
  void input_gradient(const Images<R>* gradients, R* const* weights, int count, i64 n, const Phase& py,
                      const Phase& px, const Images<R>& out) const {
    each_line(n, py.count, [&](i64 i, i64 y, i64 v) {
      along(px.count, [&](auto pixels, i64 x) {
        V sum[pixels()] = {};
        for (int k = 0; k < count; ++k)
          for (i64 r = 0; r < py.taps; ++r)
            for (i64 c = 0; c < px.taps; ++c) {
              const R* from = gradients[k].at(i, y + py.first + r * py.apart,
                                              x + px.first + c * px.apart) + v;
              const i64 at = tap(py.tap0 + py.step * (py.taps - 1 - r),
                                 px.tap0 + px.step * (px.taps - 1 - c));
              add(sum, load(weights[k] + at + v), from, gradients[k].pixel);
            }
        put(sum, out.at(i, y, x) + v, out.pixel);
      });
    });
  }

 private:
  i64 tap(i64 r, i64 c) const { return (r * s.kernel[1] + c) * ld; }
  static const R* input(const Images<R>& in, const Sweep& sweep, i64 i, i64 y, i64 x, i64 r, i64 c) {
    return in.at(i, y * sweep.step[0] + sweep.first[0] + r * sweep.apart[0],
                 x * sweep.step[1] + sweep.first[1] + c * sweep.apart[1]);
  }

  template <i64 n>
  static FASTMETA_INLINE void add(V (&sum)[n], V weight, const R* from, i64 step) {
    for (i64 p = 0; p < n; ++p) sum[p] += weight * load(from + p * step);
  }
  template <i64 n>
  static FASTMETA_INLINE void put(const V (&sum)[n], R* to, i64 step) {
    for (i64 p = 0; p < n; ++p) store(to + p * step, sum[p]);
  }

  // f(sample, line, channel)
  template <class F>
  FASTMETA_INLINE void each_line(i64 n, i64 lines, F f) const {
    for (i64 i = 0; i < n; ++i)
      for (i64 y = 0; y < lines; ++y)
        for (i64 v = 0; v < ld; v += W) f(i, y, v);
  }
  template <class F>
  FASTMETA_INLINE void each_tap(F f) const {
    for (i64 r = 0; r < s.kernel[0]; ++r)
      for (i64 c = 0; c < s.kernel[1]; ++c) f(r, c);
  }
  // f(how many pixels, the first) for all of a line
  template <class F>
  static FASTMETA_INLINE void along(i64 n, F f) {
    i64 x = 0;
    for (; x + 4 <= n; x += 4) f(std::integral_constant<i64, 4>{}, x);
    for (; x < n; ++x) f(std::integral_constant<i64, 1>{}, x);
  }
};

}  // namespace fastmeta::FASTMETA_ISA
