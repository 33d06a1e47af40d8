// Norm of channels, activation and max-pool of many tasks, the backward and the backward's.
//
// A thread takes a channel of a task (or a vector of channels) and goes over its pixels twice: for
// sums, and to write. With x' the normalised pixels, g the gradient for the norm's output (that for
// the pool's, sent back through pool and activation), scale = weight * rstd, and m(.) means over pixels,
//
//   backward   for x: scale (g - m(g) - x' m(g x'));  for weight: sum of g x';  for bias: of g
//
// and, from gradients a, u, v for what the backward returns for x, weight and bias,
//
//   second     for g: u x' + v + scale (a - m(a) - x' m(a x'))
//              for x: p (g - m(g)) + q (a - m(a)) + k x'
//              for weight: n rstd e
//     where    e = m(a g) - m(a) m(g) - m(a x') m(g x'),  p = rstd (u - scale m(a x')),
//              q = -scale rstd m(g x'),  k = rstd ((2 scale m(a x') - u) m(g x') - scale e)
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "dispatch.h"
#include "runtime.h"

#include "simd.h"
//
#include "image_lanes.h"
#include "norm_sums.h"
#include "stages.h"

namespace fastmeta::FASTMETA_ISA {

namespace {

using Real = FASTMETA_REAL;
using V = Vec<Real>;
constexpr i64 W = lanes<Real>;

template <class F>
FASTMETA_INLINE V each_lane(F f) {
  alignas(sizeof(V)) Real values[W];
  for (i64 l = 0; l < W; ++l) values[l] = Real(f(l));
  return load(values);
}

// A channel of a task, or a vector of channels.
template <class Along>
class Unit {
  static constexpr int P = Along::window, K = P * P;

 public:
  Unit(const Norm<Real>& call, i64 task, i64 channel)
      : call_(call), task_(task), channel_(channel),
        along_(call.height, call.width, channels()), n_(call.samples * call.height * call.width) {}

  void forward() {
    const Moments<Real> m = moments();
    double rstd[W];
    for (i64 l = 0; l < W; ++l) rstd[l] = 1 / std::sqrt(m.squares[l] / m.n + call_.eps);
    along_.put(at(call_.mean), m.mean);
    along_.put(at(call_.rstd), rstd);
    read_constants();
    for (i64 s = 0; s < call_.samples; ++s) {
      const Image<Real> x = image(call_.x, s), y = image(call_.y, s);
      along_.each_window([&](auto lanes, i64 i, i64 j) {
        V pixels[K];
        along_.load(x, lanes, i, j, pixels);
        V best = z(pixels[0]);
        for (int k = 1; k < K; ++k) {
          const V next = z(pixels[k]);
          best = select((next > best) | (next != next), next, best);
        }
        lanes.store(y.at(i / P, j / P), through_activation(best, best));
      });
    }
  }

  void backward() {
    read_constants();
    Sums<Real, 2> sums;
    for (i64 s = 0; s < call_.samples; ++s) {
      const Image<Real> x = image(call_.x, s), y = image(call_.y, s);
      along_.each_window([&](auto lanes, i64 i, i64 j) {
        const Window w = look(x, lanes, i, j);
        const V g = gradient(y, lanes, i, j, w);
        sums.add(Terms<Real, 2>{{g, g * pick(w, w.normal)}}.counted(lanes));
      });
    }
    const auto* sum = sums.total(along_);
    along_.put(at(call_.for_bias), sum[0]);
    along_.put(at(call_.for_weight), sum[1]);
    const V m_g = mean_of(sum[0]), m_gx = mean_of(sum[1]);
    const auto for_x = [&](V g, V normal) { return scale_ * (g - m_g - normal * m_gx); };

    for (i64 s = 0; s < call_.samples; ++s) {
      const Image<Real> x = image(call_.x, s), y = image(call_.y, s), to = image(call_.for_x, s);
      along_.each_window([&](auto lanes, i64 i, i64 j) {
        const Window w = look(x, lanes, i, j);
        const V g = gradient(y, lanes, i, j, w);
        V out[K];
        for (int k = 0; k < K; ++k) out[k] = for_x(of_pixel(w, g, k), w.normal[k]);
        along_.store(to, lanes, i, j, out);
      });
      along_.each_other([&](auto lanes, i64 i, i64 j) {
        lanes.store(to.at(i, j), for_x(V{}, normal(lanes.load(x.at(i, j)))));
      });
    }
  }

  void second_backward() {
    read_constants();
    Sums<Real, 5> sums;
    for (i64 s = 0; s < call_.samples; ++s) {
      const Image<Real> x = image(call_.x, s), y = image(call_.y, s), a = image(call_.a, s);
      along_.each_window([&](auto lanes, i64 i, i64 j) {
        const Window w = look(x, lanes, i, j);
        const V g = gradient(y, lanes, i, j, w);
        V of_x[K], sum{}, product{};
        along_.load(a, lanes, i, j, of_x);
        for (int k = 0; k < K; ++k) sum += of_x[k], product += of_x[k] * w.normal[k];
        sums.add(Terms<Real, 5>{{g, g * pick(w, w.normal), sum, product, g * pick(w, of_x)}}.counted(
            lanes));
      });
      along_.each_other([&](auto lanes, i64 i, i64 j) {
        const V of_x = lanes.load(a.at(i, j)), product = of_x * normal(lanes.load(x.at(i, j)));
        sums.add(Terms<Real, 5>{{V{}, V{}, of_x, product, V{}}}.counted(lanes));
      });
    }
    const Second c = settle(sums.total(along_));

    for (i64 s = 0; s < call_.samples; ++s) {
      const Image<Real> x = image(call_.x, s), y = image(call_.y, s), a = image(call_.a, s);
      const Image<Real> to_x = image(call_.for_x, s), to_y = image(call_.for_y, s);
      along_.each_window([&](auto lanes, i64 i, i64 j) {
        const Window w = look(x, lanes, i, j);
        const V g = gradient(y, lanes, i, j, w);
        V of_x[K], out[K];
        along_.load(a, lanes, i, j, of_x);
        for (int k = 0; k < K; ++k) out[k] = c.for_x(of_pixel(w, g, k), of_x[k], w.normal[k]);
        along_.store(to_x, lanes, i, j, out);
        const V for_g = c.for_g(pick(w, of_x), pick(w, w.normal), scale_);
        lanes.store(to_y.at(i / P, j / P), through_activation(for_g, w.best));
      });
      along_.each_other([&](auto lanes, i64 i, i64 j) {
        const V of_x = lanes.load(a.at(i, j)), pixel = lanes.load(x.at(i, j));
        lanes.store(to_x.at(i, j), c.for_x(V{}, of_x, normal(pixel)));
      });
    }
  }

 private:
  // ---- a window -----------------------------------------------------------------------------------

  struct Window {
    V normal[K];        // x'
    Mask<Real> taken[K];  // the first of the largest
    V best;             // what the activation is of
  };

  template <class L>
  FASTMETA_INLINE Window look(const Image<Real>& x, L lanes, i64 i, i64 j) const {
    Window w;
    V pixels[K], values[K];
    along_.load(x, lanes, i, j, pixels);
    for (int k = 0; k < K; ++k) {
      w.normal[k] = normal(pixels[k]);
      values[k] = z(pixels[k]);
    }
    w.best = values[0];
    for (int k = 1; k < K; ++k) w.best = vmax(values[k], w.best);
    Mask<Real> left = Mask<Real>{} == Mask<Real>{};
    for (int k = 0; k < K && K > 1; ++k) {
      w.taken[k] = (values[k] == w.best) & left;
      left &= ~w.taken[k];
    }
    return w;
  }
  // Of a number a pixel, that of the pixel that the window takes.
  static FASTMETA_INLINE V pick(const Window& w, const V* of) {
    V chosen = of[K - 1];
    for (int k = K - 2; k >= 0; --k) chosen = select(w.taken[k], of[k], chosen);
    return chosen;
  }
  static FASTMETA_INLINE V of_pixel(const Window& w, V g, int k) {
    if constexpr (K == 1) return g;
    return select(w.taken[k], g, V{});
  }
  template <class L>
  FASTMETA_INLINE V gradient(const Image<Real>& y, L lanes, i64 i, i64 j, const Window& w) const {
    return through_activation(lanes.load(y.at(i / P, j / P)), w.best);
  }
  FASTMETA_INLINE V through_activation(V v, V of) const { return select(of > V{}, v, v * slope_); }
  FASTMETA_INLINE V normal(V x) const { return (x - mean_) * rstd_; }
  FASTMETA_INLINE V z(V x) const { return (x - mean_) * scale_ + bias_; }

  // ---- what a channel has -------------------------------------------------------------------------

  i64 channels() const { return smaller(Along::most_channels, call_.channels - channel_); }
  Image<Real> image(const Batch<Real>& b, i64 sample) const {
    return image_of(b, task_, sample, channel_);
  }
  Real* at(const PerChannel<Real>& p) const { return p.data + task_ * p.task + channel_; }
  V constants(const PerChannel<Real>& p) const { return along_.constants(at(p)); }

  void read_constants() {
    mean_ = constants(call_.mean);
    rstd_ = constants(call_.rstd);
    scale_ = call_.weight.data ? rstd_ * constants(call_.weight) : rstd_;
    bias_ = call_.bias.data ? constants(call_.bias) : V{};
    slope_ = splat(Real(call_.slope));
  }

  Moments<Real> moments() const {
    constexpr i64 bytes = i64(16) << 10;
    const typename Along::WithoutWindows all(call_.height, call_.width, channels());
    const i64 step = larger(1, bytes / (all.vectors() * i64(sizeof(V))));
    const auto chunk = [&](i64 first) {
      const i64 n = smaller(step, call_.samples - first);
      return moments_of(call_.x, all, task_, channel_, first, n);
    };
    Moments<Real> m = chunk(0);
    for (i64 first = step; first < call_.samples; first += step) m.merge(chunk(first));
    return m;
  }

  V mean_of(const double* sum) const {
    return each_lane([&](i64 l) { return sum[l] / double(n_); });
  }

  struct Second {
    V m_g, m_a, of_g, of_a, of_x, u, v;

    FASTMETA_INLINE V for_x(V g, V a, V normal) const {
      return of_g * (g - m_g) + of_a * (a - m_a) + of_x * normal;
    }
    FASTMETA_INLINE V for_g(V a, V normal, V scale) const {
      return u * normal + v + scale * (a - m_a);
    }
  };

  // From the sums of g, g x', a, a x' and a g.
  Second settle(const double (*sum)[W]) const {
    const V u = constants(call_.u);
    double for_weight[W], of_x[W];
    Second c;
    const auto m = [&](int k, i64 l) { return sum[k][l] / double(n_); };
    for (i64 l = 0; l < W; ++l) {
      const double e = m(4, l) - m(2, l) * m(0, l) - m(3, l) * m(1, l), scale = scale_[l];
      for_weight[l] = double(n_) * rstd_[l] * e;
      of_x[l] = rstd_[l] * ((2 * scale * m(3, l) - u[l]) * m(1, l) - scale * e);
    }
    along_.put(at(call_.for_weight), for_weight);
    c.m_g = mean_of(sum[0]);
    c.m_a = mean_of(sum[2]);
    c.u = each_lane([&](i64 l) { return u[l] - scale_[l] * m(3, l); });
    c.v = constants(call_.v);
    c.of_g = rstd_ * c.u;
    c.of_a = each_lane([&](i64 l) { return -double(scale_[l]) * rstd_[l] * m(1, l); });
    c.of_x = each_lane([&](i64 l) { return of_x[l]; });
    return c;
  }

  const Norm<Real>& call_;
  i64 task_, channel_;
  Along along_;
  i64 n_;
  V mean_, rstd_, scale_, bias_, slope_;
};

template <class Along>
void run(const Norm<Real>& call) {
  each_unit<Along>(call, [&](i64 task, i64 channel) {
    Unit<Along> unit(call, task, channel);
    switch (call.form) {
      case NormForm::Forward:
        return unit.forward();
      case NormForm::Backward:
        return unit.backward();
      case NormForm::SecondBackward:
        return unit.second_backward();
    }
  });
}

}  // namespace

void norm(const Norm<Real>& call) {
  if (call.along_pixels)
    call.pool == 1 ? run<AlongPixels<Real, 1>>(call) : run<AlongPixels<Real, 2>>(call);
  else
    call.pool == 1 ? run<AlongChannels<Real, 1>>(call) : run<AlongChannels<Real, 2>>(call);
}

}  // namespace fastmeta::FASTMETA_ISA
