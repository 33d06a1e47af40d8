// Where everything of a network of stages lies, for one team of one task.
#pragma once

#include "activation.h"
#include "parameters.h"

namespace fastmeta::FASTMETA_ISA {

constexpr int max_stages = 256;

// One residue of the input pixels modulo the stride: the gradient of its pixels is a correlation of
// the output's gradient with every stride-th tap, in reverse order.
struct Phase {
  i64 taps;   // 0: these pixels reach no output
  i64 tap0;   // the taps are tap0, tap0 + stride, ...
  i64 first;  // output pixel that the last tap takes to the first input pixel
  i64 count;  // input pixels
};

inline Phase phase_of(const Stage& s, int axis, i64 residue) {
  const i64 stride = s.stride[axis], size = axis ? s.in_w : s.in_h;
  Phase p;
  p.tap0 = (residue + s.padding[axis]) % stride;
  p.taps = p.tap0 < s.kernel[axis] ? ceil_div(s.kernel[axis] - p.tap0, stride) : 0;
  p.first = (residue + s.padding[axis] - p.tap0) / stride - (p.taps - 1);
  p.count = residue < size ? ceil_div(size - residue, stride) : 0;
  return p;
}

template <class Team_>
struct StagePlan : Parameters<Team_> {
  using Team = Team_;
  using R = typename Team::Real;
  using Base = Parameters<Team>;
  using Base::loop, Base::has_rate, Base::theta_size, Base::shared_size, Base::rate_steps;
  static_assert(Team::tasks == 1, "lanes are channels");

  int n_stages;
  int first_piece[max_stages + 1];
  i64 weight_at[max_stages], bias_at[max_stages], gamma_at[max_stages], beta_at[max_stages];
  i64 begin_at[max_stages + 1];  // the stage's parameters in theta
  int lowest_adapted;

  // Values of one set of samples: what the products gave, and the constants of the norms.
  i64 z_at[max_stages], constants_at[max_stages], values_size = 0;
  i64 query_size;  // kept from forward to backward: all values, or nothing

  i64 values_at, rz_at[max_stages], rconstants_at[max_stages];
  i64 g_at[2], rg_at[2], sums_at, gconstants_at, ones_at, zeros_at;
  i64 total_at[2], runs_at, run_size = 0, flipped_at[2];
  i64 output_at, r_output_at, y_at, coefficient_at, curvature_at;
  i64 theta_work_at[2], lambda_at, direction_at, support_gradient_at;
  i64 scratch_size = 0;

  // Of one worker.
  i64 x_at, rx_at, gz_at, rgz_at, rows_at, block_size = 0, terms_at, worker_size = 0;

  explicit StagePlan(const InnerLoop<R>& l) : Base(l), n_stages(l.network.n_stages) {
    lay_out_parameters();
    lay_out_values();
    lay_out_scratch();
    lay_out_worker();
  }

  const Stage& stage(int l) const { return loop.network.stages[l]; }
  i64 outputs() const { return stage(n_stages - 1).c; }
  i64 sample_size() const { return stage(0).in_c * stage(0).in_h * stage(0).in_w; }
  i64 input_size(const Samples<R>& s) const { return s.n * input_pixels(0) * ld_gradient(0); }

  i64 ld(int l) const { return Team::stride(stage(l).c); }
  // A product reads the network's input element by element, so its pixels need no padding.
  i64 ld_in(int l) const {
    return l == 0 && stage(0).product ? stage(0).in_c : Team::stride(stage(l).in_c);
  }
  i64 ld_gradient(int l) const { return Team::stride(stage(l).in_c); }
  i64 z_pixels(int l) const { return stage(l).h * stage(l).w; }
  i64 out_pixels(int l) const { return stage(l).out_h * stage(l).out_w; }
  i64 input_pixels(int l) const { return stage(l).in_h * stage(l).in_w; }
  i64 z_size(int l) const { return z_pixels(l) * ld(l); }  // a sample
  bool batch(int l) const { return stage(l).norm == NormKind::Batch; }
  i64 sets(int l, i64 n) const { return batch(l) ? 1 : n; }  // of a norm's constants
  bool adapts(int l) const {
    bool any = false;
    for (int i = first_piece[l]; i < first_piece[l + 1]; ++i)
      any = any || has_rate(this->pieces[i].parameter);
    return any;
  }
  bool weight_adapts(int l) const { return stage(l).product && has_rate(stage(l).weight); }
  i64 most() const { return larger(loop.support.n, loop.query.n); }

  // The border of zeros that the backward of a product wants around its output's gradient.
  void gradient_border(int l, i64 before[2], i64 after[2]) const {
    const Stage& s = stage(l);
    const i64 size[2] = {s.h, s.w};
    for (int axis = 0; axis < 2; ++axis) {
      before[axis] = after[axis] = 0;
      if (!s.product) continue;
      for (i64 residue = 0; residue < s.stride[axis]; ++residue) {
        const Phase p = phase_of(s, axis, residue);
        if (!p.taps || !p.count) continue;
        before[axis] = larger(before[axis], -p.first);
        after[axis] = larger(after[axis], p.first + p.count - 1 + p.taps - 1 - (size[axis] - 1));
      }
    }
  }

  i64 x_row(int l) const { return (stage(l).in_w + 2 * padding(l, 1)) * ld_in(l); }
  i64 x_size(int l) const { return (stage(l).in_h + 2 * padding(l, 0)) * x_row(l); }  // a sample
  i64 padding(int l, int axis) const { return stage(l).product ? stage(l).padding[axis] : 0; }
  i64 gz_row(int l) const {
    i64 before[2], after[2];
    gradient_border(l, before, after);
    return (before[1] + stage(l).w + after[1]) * ld(l);
  }
  i64 gz_size(int l) const {
    i64 before[2], after[2];
    gradient_border(l, before, after);
    return (before[0] + stage(l).h + after[0]) * gz_row(l);
  }

  // Samples are worked on in chunks that stay in the second-level cache (1 MiB) with the weights.
  // It depends on shapes alone: threads share the chunks, and sums over them have a fixed order.
  i64 chunks(int l, i64 n) const {
    constexpr i64 cached = i64(256) << 10;
    const i64 sample = i64(sizeof(R)) * (x_size(l) + gz_size(l));
    return ceil_div(n, larger(1, smaller(n, cached / sample)));
  }
  i64 largest_chunk(int l, i64 n) const { return ceil_div(n, chunks(l, n)); }
  // Chunks whose weight gradients are added one to another before the runs are.
  i64 runs(int l, i64 n) const { return smaller(8, chunks(l, n)); }

 private:
  void lay_out_parameters() {
    lowest_adapted = n_stages;
    for (int l = 0; l < n_stages; ++l) {
      const Stage& s = stage(l);
      const i64 taps = s.kernel[0] * s.kernel[1];
      first_piece[l] = this->n_pieces;
      begin_at[l] = theta_size;
      weight_at[l] = theta_size;
      if (s.product) this->add({s.weight, 0, 0, taps, s.in_c, s.c, 1, taps, s.in_c * taps});
      bias_at[l] = row(s.product ? s.bias : -1, s.c);
      gamma_at[l] = row(s.norm == NormKind::None ? -1 : s.gamma, s.c);
      beta_at[l] = row(s.norm == NormKind::None ? -1 : s.beta, s.c);
      run_size = larger(run_size, theta_size - begin_at[l]);
    }
    first_piece[n_stages] = this->n_pieces;
    begin_at[n_stages] = theta_size;
    for (int l = n_stages - 1; l >= 0; --l)
      if (adapts(l)) lowest_adapted = l;
  }

  i64 row(int parameter, i64 columns) {
    const i64 at = theta_size;
    if (parameter < 0) return -1;
    this->add_row(parameter, columns);
    return at;
  }

  static i64 grow(i64& size, i64 scalars) {
    const i64 at = size;
    size += round_up(scalars, 64 / i64(sizeof(R)));
    return at;
  }
  i64 take(i64 scalars) { return grow(scratch_size, scalars); }

  void lay_out_values() {
    for (int l = 0; l < n_stages; ++l) {
      z_at[l] = grow(values_size, most() * z_size(l));
      constants_at[l] = grow(values_size, sets(l, most()) * 2 * ld(l));
    }
    constexpr i64 affordable = i64(1) << 30;
    const bool keeps = loop.query.n &&
                       values_size * i64(sizeof(R)) <= affordable / larger(1, loop.tasks);
    query_size = keeps ? values_size : 0;
  }

  void lay_out_scratch() {
    const i64 n = most(), S = loop.support.n;
    i64 widest = 0, gradient = 0, flipped = 0;
    values_at = take(values_size);
    for (int l = 0; l < n_stages; ++l) {
      rz_at[l] = take(S * z_size(l));
      rconstants_at[l] = take(sets(l, S) * 2 * ld(l));
      widest = larger(widest, larger(ld(l), ld_gradient(l)));
      gradient = larger(gradient, larger(input_pixels(l) * ld_gradient(l), out_pixels(l) * ld(l)));
      if (stage(l).product)
        flipped = larger(flipped, stage(l).kernel[0] * stage(l).kernel[1] * stage(l).c * ld_gradient(l));
    }
    for (int i = 0; i < 2; ++i) {
      g_at[i] = take(n * gradient);
      rg_at[i] = take(S * gradient);
      total_at[i] = take(run_size);
      flipped_at[i] = take(flipped);
      theta_work_at[i] = take(theta_size);
    }
    sums_at = take(n * 4 * widest);
    gconstants_at = take(n * 4 * widest);
    ones_at = take(widest);
    zeros_at = take(widest);
    runs_at = take(2 * 8 * run_size);
    const i64 out = n * Team::stride(outputs());
    output_at = take(out);
    r_output_at = take(out);
    y_at = take(out);
    curvature_at = take(out);
    coefficient_at = take(n * Team::W);
    lambda_at = take(theta_size);
    direction_at = take(theta_size);
    support_gradient_at = take(input_size(loop.support));
  }

  void lay_out_worker() {
    i64 x = 0, gz = 0, terms = 0;
    for (int l = 0; l < n_stages; ++l) {
      const Stage& s = stage(l);
      const i64 chunk = larger(largest_chunk(l, larger(1, loop.support.n)),
                               largest_chunk(l, larger(1, loop.query.n)));
      x = larger(x, chunk * x_size(l));
      gz = larger(gz, chunk * gz_size(l));
      block_size = larger(block_size, block_rows(l) * s.w * ld(l));
      if (s.product)
        terms = larger(terms, count_terms(s.kernel[0], s.kernel[1], larger(s.in_c, s.c),
                                          chunk * s.h));
    }
    x_at = grow(worker_size, x);
    rx_at = grow(worker_size, x);
    gz_at = grow(worker_size, gz);
    rgz_at = grow(worker_size, gz);
    rows_at = grow(worker_size, 7 * round_up(block_size, 64 / i64(sizeof(R))));
    terms_at = grow(worker_size, terms * i64(sizeof(Term<R>)) / i64(sizeof(R)));
  }

 public:
  // Rows of z from one row of windows to the next; the last ones also stand for what no window covers.
  i64 block_rows(int l) const {
    const Stage& s = stage(l);
    return larger(s.pool_stride[0], s.h - (s.out_h - 1) * s.pool_stride[0]);
  }
};

}  // namespace fastmeta::FASTMETA_ISA
