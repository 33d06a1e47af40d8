// The statistics of norms and of their backward, over the pixels and samples of a set: one for batch
// norm, one a sample and group of channels for the others. The sums over a sample's pixels come from
// the tails; here they are put together, in double precision.
#pragma once

#include "stage_inputs.h"

namespace fastmeta::FASTMETA_ISA {

template <class Team>
class StageNorms : protected StageInputs<Team> {
 protected:
  using Base = StageInputs<Team>;
  using R = typename Team::Real;
  using V = Vec<R>;
  static constexpr i64 W = Team::W;
  using Base::at, Base::constants, Base::each_chunk, Base::g, Base::n_, Base::out_size,
      Base::plan_, Base::r_, Base::rg, Base::rz, Base::sums, Base::theta_, Base::values_, Base::with_tail, Base::z;
  using Base::Base;

  // f(set, first sample, samples, first channel, channels): what one set of constants is over.
  template <class F>
  void each_set(int l, F f) const {
    const Stage& s = plan_.stage(l);
    if (plan_.is_one_set(l)) {
      for (i64 c = 0; c < s.c; ++c) f(i64(0), i64(0), n_, c, i64(1));
      return;
    }
    const i64 channels = s.c / s.groups;
    for (i64 i = 0; i < n_; ++i)
      for (i64 c = 0; c < s.c; c += channels) f(i, i, i64(1), c, channels);
  }

  // Each channel's mean and sum of squares about it, of one sample.
  void moments(int l, i64 sample) {
    const i64 ld = plan_.ld(l), pixels = plan_.z_pixels(l);
    const R* from = z(l, sample);
    R* to = sums(l, sample);
    for (i64 v = 0; v < ld; v += W) {
      const V sum = sum_rows(l, [&](i64 p) { return load(from + p * ld + v); });
      const V mean = sum / R(pixels);
      const V squares = sum_rows(l, [&](i64 p) {
        const V difference = load(from + p * ld + v) - mean;
        return difference * difference;
      });
      store(to + v, mean);
      store(to + ld + v, squares);
    }
  }

  // The sum of f over the pixels of z, row by row: one running sum over an image loses digits.
  template <class F>
  FASTMETA_INLINE V sum_rows(int l, F f) const {
    const Stage& s = plan_.stage(l);
    V total{};
    for (i64 y = 0; y < s.h; ++y) {
      V sum{};
      for (i64 p = y * s.w; p < (y + 1) * s.w; ++p) sum += f(p);
      total += sum;
    }
    return total;
  }

  void settle_moments(int l) {
    const Stage& s = plan_.stage(l);
    const i64 ld = plan_.ld(l), pixels = plan_.z_pixels(l);
    R* to = values_ + plan_.constants_at[l];
    std::memset(to, 0, sizeof(R) * size_t(plan_.sets(l, n_) * 2 * ld));
    if (plan_.running(l)) return take_moments(l, to);
    each_set(l, [&](i64 set, i64 first, i64 n, i64 c0, i64 channels) {
      const auto total = [&](auto term) {
        double sum = 0;
        for (i64 i = first; i < first + n; ++i)
          for (i64 c = c0; c < c0 + channels; ++c) sum += term(sums(l, i) + c);
        return sum;
      };
      const double mean = total([](const R* m) { return double(m[0]); }) / double(n * channels);
      const double squares = total([&](const R* m) {
        return m[ld] + double(pixels) * (m[0] - mean) * (m[0] - mean);
      });
      const double variance = squares / double(n * channels * pixels);
      const double scale = 1 / std::sqrt(variance + s.eps);
      if (plan_.batch(l)) at(plan_.batch_variance_at[l])[c0] = R(variance);
      for (i64 c = c0; c < c0 + channels; ++c)
        to[set * 2 * ld + c] = R(mean), to[set * 2 * ld + ld + c] = R(scale);
    });
  }

  void take_moments(int l, R* to) const {
    const Stage& s = plan_.stage(l);
    const R *mean = theta_ + plan_.mean_at[l], *variance = theta_ + plan_.variance_at[l];
    for (i64 c = 0; c < s.c; ++c) {
      to[c] = mean[c];
      to[plan_.ld(l) + c] = R(1 / std::sqrt(double(variance[c]) + s.eps));
    }
  }

  // Sums of Rz and xhat Rz, of one sample.
  void r_moments(int l, i64 sample) {
    const i64 ld = plan_.ld(l);
    const R *from = z(l, sample), *r_from = rz(l, sample);
    const Constants<R> c = constants(l, sample);
    R* to = sums(l, sample);
    for (i64 v = 0; v < ld; v += W) {
      const V mean = load(c.mean + v), s = load(c.s + v);
      store(to + v, sum_rows(l, [&](i64 p) { return load(r_from + p * ld + v); }));
      store(to + ld + v, sum_rows(l, [&](i64 p) {
              return load(r_from + p * ld + v) * ((load(from + p * ld + v) - mean) * s);
            }));
    }
  }

  void settle_r_moments(int l) {
    const i64 ld = plan_.ld(l), pixels = plan_.z_pixels(l);
    R* to = at(plan_.rconstants_at[l]);
    std::memset(to, 0, sizeof(R) * size_t(plan_.sets(l, n_) * 2 * ld));
    if (plan_.running(l)) return;
    each_set(l, [&](i64 set, i64 first, i64 n, i64 c0, i64 channels) {
      double sum = 0, product = 0;
      for (i64 i = first; i < first + n; ++i)
        for (i64 c = c0; c < c0 + channels; ++c) {
          sum += sums(l, i)[c];
          product += sums(l, i)[ld + c];
        }
      const double share = 1 / double(n * channels * pixels);
      for (i64 c = c0; c < c0 + channels; ++c) {
        to[set * 2 * ld + c] = R(sum * share);
        to[set * 2 * ld + ld + c] = R(product * share);
      }
    });
  }

  // The sums over all samples that the norm's backward and its parameters' gradients are made of.
  void settle_gradients(int l) {
    each_chunk(l, [&](i64 worker, i64 first, i64 n) {
      with_tail(l, worker, [&](auto own) {
        for (i64 i = first; i < first + n; ++i) {
          const Constants<R> c = constants(l, i);
          if (r_)
            own.r_sums(z(l, i), rz(l, i), g(l) + i * out_size(l), rg(l) + i * out_size(l), c,
                       sums(l, i));
          else
            own.backward_sums(z(l, i), g(l) + i * out_size(l), c, sums(l, i));
        }
      });
    });
    const i64 ld = plan_.ld(l), pixels = plan_.z_pixels(l);
    R* to = at(plan_.gconstants_at);
    std::memset(to, 0, sizeof(R) * size_t(plan_.sets(l, n_) * 4 * ld));
    if (plan_.running(l)) return;
    const Constants<R> p = constants(l, 0);  // the parameters are those of all sets
    each_set(l, [&](i64 set, i64 first, i64 n, i64 c0, i64 channels) {
      double a = 0, b = 0, ra = 0, rb = 0;
      for (i64 i = first; i < first + n; ++i)
        for (i64 c = c0; c < c0 + channels; ++c) {
          const R* sum = sums(l, i) + c;
          a += p.gamma[c] * sum[0];
          b += p.gamma[c] * sum[ld];
          if (!r_) continue;
          ra += p.r_gamma[c] * sum[0] + p.gamma[c] * sum[2 * ld];
          rb += p.r_gamma[c] * sum[ld] + p.gamma[c] * sum[3 * ld];
        }
      const double share = 1 / double(n * channels * pixels);
      const R values[4] = {R(a * share), R(b * share), R(ra * share), R(rb * share)};
      for (i64 c = c0; c < c0 + channels; ++c)
        for (int k = 0; k < 4; ++k) to[(set * 4 + k) * ld + c] = values[k];
    });
  }

  // d loss / d beta and d gamma, or with r their derivatives, over all samples.
  void norm_gradient(int l, R* total, bool r) {
    const i64 ld = plan_.ld(l), begin = plan_.begin_at[l], offset = r ? 2 * ld : 0;
    const i64 places[2] = {plan_.beta_at[l], plan_.gamma_at[l]};
    for (int k = 0; k < 2; ++k) {
      if (places[k] < 0) continue;
      R* to = total + places[k] - begin;
      std::memset(to, 0, sizeof(R) * size_t(ld));
      for (i64 i = 0; i < n_; ++i)
        for (i64 v = 0; v < ld; v += W)
          store(to + v, load(to + v) + load(sums(l, i) + offset + k * ld + v));
    }
  }
};

}  // namespace fastmeta::FASTMETA_ISA
