// Where everything of a network of stages lies, for one team of one task.
#pragma once

#include "activation.h"
#include "loss_room.h"
#include "parameters.h"
#include "stage_product.h"

namespace fastmeta::FASTMETA_ISA {

constexpr int max_stages = 256;

template <class Team_>
struct StagePlan : Parameters<Team_> {
  using Team = Team_;
  using R = typename Team::Real;
  using Base = Parameters<Team>;
  using Base::loop, Base::has_rate, Base::theta_size, Base::shared_size, Base::rate_steps;
  static_assert(Team::tasks == 1, "lanes are channels");
  static constexpr bool has_dual_form = false, splits = false, has_moments = true;

  int n_stages;
  int first_piece[max_stages + 1];
  i64 weight_at[max_stages], bias_at[max_stages], gamma_at[max_stages], beta_at[max_stages];
  i64 mean_at[max_stages], variance_at[max_stages];
  i64 begin_at[max_stages + 1];  // the stage's parameters in theta
  int lowest_adapted, lowest_learned;  // of those that adapt, and of all with parameters

  // Values of one set of samples: what the products gave, and the constants of the norms.
  i64 z_at[max_stages], constants_at[max_stages], values_size = 0;
  i64 support_size, query_size;  // kept from forward to backward: all values, or nothing

  i64 values_at, rz_at[max_stages], rconstants_at[max_stages];
  i64 g_at[2], rg_at[2], branch_g_at[max_stages + 1], branch_rg_at[max_stages + 1];
  i64 sums_at, gconstants_at, ones_at, zeros_at, batch_variance_at[max_stages];
  i64 total_at[2], runs_at, run_size = 0, flipped_at[2];
  i64 output_at, r_output_at, output_g_at, output_rg_at, y_at, program_at, coefficient_at, curvature_at;
  i64 theta_work_at[2], lambda_at, direction_at, support_gradient_at;
  i64 scratch_size = 0;

  // Of one worker.
  i64 x_at, rx_at, gz_at, rgz_at, rows_at, block_size = 0, terms_at, tiles_at, worker_size = 0;
  i64 other_at, r_other_at, other_g_at, r_other_g_at;  // of what is joined to a stage's input

  explicit StagePlan(const InnerLoop<R>& l, bool keeps_values = false)
      : Base(l), n_stages(l.network.n_stages) {
    find_branches();
    lay_out_parameters();
    lay_out_values(keeps_values);
    lay_out_scratch();
    lay_out_worker();
  }

  // For a forward and a backward that follow each other at once.
  static StagePlan keeping(const InnerLoop<R>& l) { return StagePlan(l, true); }

  const Stage& stage(int l) const { return loop.network.stages[l]; }
  i64 outputs() const { return stage(n_stages - 1).c * out_pixels(n_stages - 1); }
  bool gives_images() const { return out_pixels(n_stages - 1) > 1; }
  i64 sample_size() const { return stage(0).in_c * stage(0).in_h * stage(0).in_w; }
  i64 input_size(const Samples<R>& s) const { return s.n * product(0).in_size(); }

  // What a stage reads: a stage, or -1 for the network's input.
  int input(int l) const { return stage(l).input; }
  int other(int l) const { return stage(l).other; }
  bool joins(int l) const { return stage(l).join != JoinKind::None; }
  // Whether the gradient of what stage m gives is more than what the next stage's backward leaves:
  // it is a sum over readers then, or waits for stages between.
  bool branches(int m) const { return branches_[m + 1]; }
  int last_reader(int m) const { return last_reader_[m + 1]; }

  StageProduct<Team> product(int l, i64 samples = 0) const {
    return StageProduct<Team>(stage(l), input(l) < 0, samples);
  }
  i64 out_size(int m) const { return m < 0 ? product(0).in_size() : out_pixels(m) * ld(m); }
  i64 ld(int l) const { return Team::stride(stage(l).c); }
  i64 z_pixels(int l) const { return stage(l).h * stage(l).w; }
  i64 out_pixels(int l) const { return stage(l).out_h * stage(l).out_w; }
  i64 z_size(int l) const { return z_pixels(l) * ld(l); }  // a sample
  bool batch(int l) const { return stage(l).norm == NormKind::Batch; }
  bool running(int l) const { return stage(l).norm == NormKind::Running; }
  bool is_one_set(int l) const { return batch(l) || running(l); }
  i64 sets(int l, i64 n) const { return is_one_set(l) ? 1 : n; }  // of a norm's constants
  bool adapts(int l) const {
    bool any = false;
    for (int i = first_piece[l]; i < first_piece[l + 1]; ++i)
      any = any || has_rate(this->pieces[i].parameter);
    return any;
  }
  bool weight_adapts(int l) const { return stage(l).weight >= 0 && has_rate(stage(l).weight); }
  i64 most() const { return larger(loop.support.n, loop.query.n); }

 private:
  bool branches_[max_stages + 1] = {};
  int last_reader_[max_stages + 1] = {};

  void find_branches() {
    int readers[max_stages + 1] = {};
    for (int l = 0; l < n_stages; ++l) {
      const int read[2] = {input(l), other(l)};
      for (int m : read) {
        if (m == no_stage) continue;
        last_reader_[m + 1] = l;
        branches_[m + 1] = ++readers[m + 1] > 1 || m + 1 != l || m != input(l);
      }
    }
  }

  void lay_out_parameters() {
    lowest_adapted = n_stages;
    for (int l = 0; l < n_stages; ++l) {
      const Stage& s = stage(l);
      const i64 taps = s.kernel[0] * s.kernel[1];
      first_piece[l] = this->n_pieces;
      begin_at[l] = theta_size;
      weight_at[l] = theta_size;
      bias_at[l] = -1;
      if (product(l).scales()) {
        scale(s.weight, s);
        if (s.bias >= 0) bias_at[l] = scale(s.bias, s);
      } else if (s.product != ProductKind::None) {
        const bool turned = product(l).transposes();
        const i64 in = turned ? product(l).outputs() : product(l).inputs(), out = turned ? s.in_c : s.c;
        if (product(l).spreads())
          this->add({s.weight, 0, 0, taps, in, out, out, taps * out, 1});
        else
          this->add({s.weight, 0, 0, taps, in, out, 1, taps, in * taps});
        bias_at[l] = product(l).spreads() && s.bias >= 0 ? scale(s.bias, s) : row(s.bias, s.c);
      }
      gamma_at[l] = row(s.norm == NormKind::None ? -1 : s.gamma, s.c);
      beta_at[l] = row(s.norm == NormKind::None ? -1 : s.beta, s.c);
      mean_at[l] = row(running(l) ? s.mean : -1, s.c);
      variance_at[l] = row(running(l) ? s.variance : -1, s.c);
      run_size = larger(run_size, theta_size - begin_at[l]);
    }
    first_piece[n_stages] = this->n_pieces;
    begin_at[n_stages] = theta_size;
    lowest_learned = 0;
    while (lowest_learned + 1 < n_stages && first_piece[lowest_learned] == first_piece[lowest_learned + 1])
      ++lowest_learned;
    for (int l = n_stages - 1; l >= 0; --l)
      if (adapts(l)) lowest_adapted = l;
  }

  i64 row(int parameter, i64 columns) {
    const i64 at = theta_size;
    if (parameter < 0) return -1;
    this->add_row(parameter, columns);
    return at;
  }

  i64 scale(int parameter, const Stage& s) {
    const i64 at = theta_size, pixels = s.h * s.w;
    this->add({parameter, 0, 0, 1, pixels, s.product == ProductKind::Pixels ? 1 : s.c, 0, 1, pixels});
    return at;
  }

  static i64 grow(i64& size, i64 scalars) {
    const i64 at = size;
    size += round_up(scalars, 64 / i64(sizeof(R)));
    return at;
  }
  i64 take(i64 scalars) { return grow(scratch_size, scalars); }

  void lay_out_values(bool keeps_values) {
    for (int l = 0; l < n_stages; ++l) {
      z_at[l] = grow(values_size, most() * z_size(l));
      constants_at[l] = grow(values_size, sets(l, most()) * 2 * ld(l));
    }
    const bool keeps = keeps_values || 2 * values_size * i64(sizeof(R)) <=
                                           most_kept / larger(1, loop.tasks);
    support_size = keeps && loop.order == 2 && loop.steps ? values_size : 0;
    query_size = keeps && loop.query.n ? values_size : 0;
  }

  void lay_out_scratch() {
    const i64 n = most(), S = loop.support.n;
    i64 widest = 0, gradient = 0, flipped = 0, runs = 0;
    values_at = take(values_size);
    for (int l = 0; l < n_stages; ++l) {
      rz_at[l] = take(S * z_size(l));
      rconstants_at[l] = take(sets(l, S) * 2 * ld(l));
      batch_variance_at[l] = take(batch(l) ? ld(l) : 0);
      const StageProduct<Team> p = product(l);
      widest = larger(widest, larger(p.ld, p.ld_gradient));
      gradient = larger(gradient, larger(p.in_size(), out_pixels(l) * p.ld));
      flipped = larger(flipped, p.flipped_size());
      const i64 more = larger(p.runs(S), p.runs(larger(1, loop.query.n))) - 1;
      runs = larger(runs, 2 * more * (begin_at[l + 1] - begin_at[l]));
    }
    for (int i = 0; i < 2; ++i) {
      g_at[i] = take(n * gradient);
      rg_at[i] = take(S * gradient);
      total_at[i] = take(run_size);
      flipped_at[i] = take(flipped);
      theta_work_at[i] = take(theta_size);
    }
    for (int m = -1; m < n_stages; ++m) {
      branch_g_at[m + 1] = take(branches(m) ? n * out_size(m) : 0);
      branch_rg_at[m + 1] = take(branches(m) ? S * out_size(m) : 0);
    }
    sums_at = take(n * 4 * widest);
    gconstants_at = take(n * 4 * widest);
    ones_at = take(widest);
    zeros_at = take(widest);
    runs_at = take(runs);
    const i64 out = n * Team::stride(outputs());
    output_at = take(out);
    r_output_at = take(out);
    output_g_at = take(gives_images() ? out : 0);
    output_rg_at = take(gives_images() ? out : 0);
    y_at = take(n * Team::stride(larger(outputs(), targets_of<Team>(loop.network, outputs()))));
    program_at = take(loss_scratch<Team>(loop.network, 1));
    curvature_at = take(out);
    coefficient_at = take(n * Team::W);
    lambda_at = take(theta_size);
    direction_at = take(theta_size);
    support_gradient_at = take(input_size(loop.support));
  }

  void lay_out_worker() {
    i64 x = 0, gz = 0, other = 0, terms = 0, tiles = 0;
    for (int l = 0; l < n_stages; ++l) {
      const StageProduct<Team> p = product(l);
      const i64 chunk = larger(p.largest_chunk(loop.support.n),
                               p.largest_chunk(larger(1, loop.query.n)));
      x = larger(x, chunk * p.x_size());
      gz = larger(gz, chunk * p.gz_size());
      block_size = larger(block_size, block_rows(l) * p.s.w * p.ld);
      if (p.moves()) terms = larger(terms, p.count_terms(chunk));
      tiles = larger(tiles, p.tile_room());
      if (this->other(l) != no_stage) other = larger(other, chunk * out_size(this->other(l)));
    }
    x_at = grow(worker_size, x);
    rx_at = grow(worker_size, x);
    gz_at = grow(worker_size, gz);
    rgz_at = grow(worker_size, gz);
    other_at = grow(worker_size, other);
    r_other_at = grow(worker_size, other);
    other_g_at = grow(worker_size, other);
    r_other_g_at = grow(worker_size, other);
    rows_at = grow(worker_size, 7 * round_up(block_size, 64 / i64(sizeof(R))));
    terms_at = grow(worker_size, terms * i64(sizeof(Term<R>)) / i64(sizeof(R)));
    tiles_at = grow(worker_size, tiles);
  }

 public:
  // Rows of z from one row of windows to the next, the last ones also standing for what no window covers;
  // or all, where windows share rows.
  i64 block_rows(int l) const {
    const Stage& s = stage(l);
    if (overlaps(l)) return s.h;
    return larger(s.pool_stride[0], s.h - (s.out_h - 1) * s.pool_stride[0]);
  }
  bool overlaps(int l) const {
    const Stage& s = stage(l);
    return s.pool_stride[0] < s.window[0] || s.pool_stride[1] < s.window[1] ||
           s.pool_before[0] || s.pool_before[1] || s.pool_behind[0] || s.pool_behind[1];
  }
};

}  // namespace fastmeta::FASTMETA_ISA
