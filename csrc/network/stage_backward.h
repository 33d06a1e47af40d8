// The backward of one stage, of a loss or of its derivative along a direction, by chunks of samples.
#pragma once

#include "stage_norms.h"

namespace fastmeta::FASTMETA_ISA {

template <class Team>
class StageBackward : protected StageNorms<Team> {
 protected:
  using Base = StageNorms<Team>;
  using R = typename Team::Real;
  static constexpr i64 W = Team::W;
  using Base::add_to, Base::at, Base::constants, Base::crew_, Base::g, Base::g_below, Base::join_gradients,
      Base::moved, Base::n_, Base::normed, Base::out_size, Base::plan_, Base::product, Base::put_input_of,
      Base::put_r_input_of, Base::rg, Base::rg_below, Base::room, Base::rz, Base::side_, Base::spread_gradient,
      Base::theta_, Base::with_tail, Base::work, Base::z;
  using Base::Base;

  bool wants_gradient(int l, const GradientTarget<R>& target) const {
    return !inner(target) || plan_.adapts(l);
  }

  // With g the gradient of the stage's output: that of its parameters goes to `target`, or with v the
  // derivative of that along v, and the plain one to `plain`. g and rg move on to its input.
  void stage_backward(int l, const R* v, const GradientTarget<R>* target, const GradientTarget<R>* plain,
                      bool deeper) {
    const StageProduct<Team> own = product(l);
    if (deeper && own.any()) {
      own.flip(at(plan_.flipped_at[0]), theta_ + plan_.weight_at[l]);
      if (v && plan_.weight_adapts(l)) own.flip(at(plan_.flipped_at[1]), v + plan_.weight_at[l]);
    }
    const GradientTarget<R>* const targets[2] = {target, plain};
    if (own.ends_at_once(n_))
      backward_at_once(l, v, targets, deeper);
    else
      backward_in_chunks(l, v, targets, deeper);
    if (target && normed(l)) {
      this->norm_gradient(l, at(plan_.total_at[0]), v != nullptr);
      if (plain) this->norm_gradient(l, at(plan_.total_at[1]), false);
    }
    if (plain) apply(l, *plain, at(plan_.total_at[1]));  // before lambda, which it reads, moves on
    if (target) apply(l, *target, at(plan_.total_at[0]));
    if (deeper) side_ = 1 - side_;
  }

 private:
  static bool inner(const GradientTarget<R>& target) {
    return target.finish == Finish::Step || target.finish == Finish::RateGrad;
  }

  // Where the gradient of a stage's parameters goes. The weight's may end where it is wanted; what
  // all others' become is up to apply().
  struct Into {
    R* sums = nullptr;  // [the stage's parameters]; nullptr: nobody wants them
    Target<R> weight{nullptr, 0};
  };

  void backward_at_once(int l, const R* v, const GradientTarget<R>* const* targets, bool deeper) {
    const i64 size = plan_.begin_at[l + 1] - plan_.begin_at[l], weight = product(l).filter_size();
    Into into[2];
    for (int i = 0; i < 2; ++i) {
      if (!targets[i]) continue;
      into[i].sums = at(plan_.total_at[i]);
      std::memset(into[i].sums + weight, 0, sizeof(R) * size_t(size - weight));
      const Piece& piece = plan_.pieces[plan_.first_piece[l]];
      if (reaches(*targets[i], piece)) into[i].weight = target_of(*targets[i], piece);
    }
    chunk_backward(l, 0, 0, n_, v, into, deeper);
  }

  // Run 0 adds up in the totals. One run after another needs one buffer more; the sums are the same.
  void backward_in_chunks(int l, const R* v, const GradientTarget<R>* const* targets, bool deeper) {
    const StageProduct<Team> own = product(l);
    const i64 chunks = own.chunks(n_), runs = own.runs(n_);
    const i64 size = plan_.begin_at[l + 1] - plan_.begin_at[l];
    const bool alone = crew_.threads == 1;
    const auto sums = [&](i64 run, i64 i) {
      if (run == 0) return at(plan_.total_at[i]);
      return at(plan_.runs_at) + ((alone ? 0 : run - 1) * 2 + i) * size;
    };
    const auto add = [&](i64 run) {
      for (i64 i = 0; i < 2 && run; ++i)
        if (targets[i]) add_to(sums(0, i), sums(run, i), size);
    };
    crew_.each(runs, [&](i64 worker, i64 run) {
      Into into[2];
      for (i64 i = 0; i < 2; ++i) {
        if (!targets[i]) continue;
        into[i].sums = sums(run, i);
        const i64 stored = own.is_dense() ? own.filter_size() : 0;  // by the first chunk
        std::memset(into[i].sums + stored, 0, sizeof(R) * size_t(size - stored));
        into[i].weight = {into[i].sums, own.ld, own.is_dense() ? Finish::Store : Finish::Add};
      }
      for (i64 chunk = chunks * run / runs; chunk < chunks * (run + 1) / runs; ++chunk) {
        const i64 first = n_ * chunk / chunks, n = n_ * (chunk + 1) / chunks - first;
        chunk_backward(l, worker, first, n, v, into, deeper);
        for (Into& each : into) each.weight.finish = Finish::Add;
      }
      if (alone) add(run);
    });
    for (i64 run = 0; !alone && run < runs; ++run) add(run);
  }

  void chunk_backward(int l, i64 worker, i64 first, i64 n, const R* v, const Into* into, bool deeper) {
    const StageProduct<Team> own = product(l);
    const i64 offset = first * own.in_size();
    const Images<R> below = own.input_gradient_images(g_below(l) + offset);
    const Images<R> r_below = own.input_gradient_images(rg_below(l) + offset);
    if (!own.any() && !deeper) return;
    if (!own.any() && (!plan_.joins(l) || this->join(l).adds_alike())) {
      z_gradients(l, worker, first, n, v != nullptr, below, r_below);
      return spread_gradient(l, first, n, v != nullptr);
    }
    const Images<R> gz = own.bordered_gradient(work(worker, plan_.gz_at), n);
    const Images<R> rgz =
        v ? own.bordered_gradient(work(worker, plan_.rgz_at), n) : Images<R>{nullptr, 0, 0, 0};
    z_gradients(l, worker, first, n, v != nullptr, gz, rgz);
    if (!own.any()) return join_gradients(l, worker, first, n, v != nullptr, gz, rgz);
    if (into[0].sums) weight_gradients(l, worker, first, n, v != nullptr, gz, rgz, into);
    if (!deeper) return;
    R* const flipped[2] = {at(plan_.flipped_at[0]), at(plan_.flipped_at[1])};
    own.input_gradient(&gz, flipped, 1, n, below, room(worker));
    const Images<R> both[2] = {rgz, gz};
    if (v)
      own.input_gradient(both, flipped, plan_.weight_adapts(l) ? 2 : 1, n, r_below, room(worker));
    spread_gradient(l, first, n, v != nullptr);
  }

  void z_gradients(int l, i64 worker, i64 first, i64 n, bool r, const Images<R>& gz,
                   const Images<R>& rgz) {
    with_tail(l, worker, [&](auto own) {
      for (i64 i = 0; i < n; ++i) {
        const i64 sample = first + i;
        const Constants<R> c = constants(l, sample);
        const R* above = g(l) + sample * out_size(l);
        if (r)
          own.r_backward(z(l, sample), rz(l, sample), above, rg(l) + sample * out_size(l), c,
                         moved(gz, i), moved(rgz, i));
        else
          own.backward(z(l, sample), above, c, moved(gz, i));
      }
    });
  }

  void weight_gradients(int l, i64 worker, i64 first, i64 n, bool r, const Images<R>& gz,
                        const Images<R>& rgz, const Into* into) {
    const StageProduct<Team> own = product(l);
    const Images<R> x = own.bordered_input(work(worker, plan_.x_at), n);
    put_input_of(l, worker, first, n, x);
    const auto add = [&](const Outer<R>* sums, int count, const Into& to) {
      if (to.weight.c) own.weight_gradient(sums, count, n, to.weight, room(worker));
      if (plan_.bias_at[l] >= 0)
        own.add_bias_gradient(sums[0].g, n, to.sums + plan_.bias_at[l] - plan_.begin_at[l]);
    };
    const Outer<R> plain{x, gz};
    if (into[1].sums) add(&plain, 1, into[1]);
    if (!r) return add(&plain, 1, into[0]);
    Outer<R> sums[2] = {{x, rgz}};
    const Images<R> rx = own.bordered_input(work(worker, plan_.rx_at), n);
    const bool has_r = put_r_input_of(l, worker, first, n, rx);
    if (has_r) sums[1] = {rx, gz};
    add(sums, has_r ? 2 : 1, into[0]);
  }

  bool reaches(const GradientTarget<R>& target, const Piece& p) const {
    return !inner(target) || plan_.has_rate(p.parameter);
  }
  Target<R> target_of(const GradientTarget<R>& target, const Piece& p) const {
    Target<R> to{target.c + p.at, Team::stride(p.columns), target.finish};
    to.from = target.from ? target.from + p.at : nullptr;
    to.scale = target.scale;
    to.rate = target.rate ? target.rate + p.shared_at : nullptr;
    to.rate_m = plan_.rate_row(p.parameter, p.columns);
    return to;
  }

  void apply(int l, const GradientTarget<R>& target, const R* total) const {
    const int done = product(l).ends_at_once(n_) ? 1 : 0;  // the weight
    for (int i = plan_.first_piece[l] + done; i < plan_.first_piece[l + 1]; ++i) {
      const Piece& p = plan_.pieces[i];
      if (!reaches(target, p)) continue;
      const i64 ld = Team::stride(p.columns), n = p.taps * p.rows;
      const Target<R> to = target_of(target, p);
      const R* sums = total + p.at - plan_.begin_at[l];
      for (i64 m = 0; m < n; ++m)
        for (i64 v = 0; v < ld / W; ++v) {
          const Vec<R> one[1][1] = {{load(sums + m * ld + v * W)}};
          finish<Broadcast>(to, m, v, one);
        }
    }
  }
};

}  // namespace fastmeta::FASTMETA_ISA
