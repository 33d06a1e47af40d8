// What the passes over stages share: the task at hand, and where things lie.
#pragma once

#include "pooled_tail.h"

namespace fastmeta::FASTMETA_ISA {

template <class Team>
class StageState {
 protected:
  using R = typename Team::Real;
  using Plan = StagePlan<Team>;

  StageState(const Plan& plan, R* scratch, const Crew& crew)
      : plan_(plan), scratch_(scratch), crew_(crew) {
    const i64 widest = plan.zeros_at - plan.ones_at;
    for (i64 i = 0; i < widest; ++i) at(plan.ones_at)[i] = 1, at(plan.zeros_at)[i] = 0;
  }

  R* at(i64 offset) { return scratch_ + offset; }
  const R* at(i64 offset) const { return scratch_ + offset; }
  // The gradient of what stage m gives, -1: of the network's input; and its derivative.
  R* g(int m) { return at(plan_.branches(m) ? plan_.branch_g_at[m + 1] : plan_.g_at[side_]); }
  R* rg(int m) { return at(plan_.branches(m) ? plan_.branch_rg_at[m + 1] : plan_.rg_at[side_]); }
  R* work(i64 worker, i64 offset) const { return crew_.template scratch<R>(worker) + offset; }
  Room<R> room(i64 worker) const {
    return {reinterpret_cast<Term<R>*>(work(worker, plan_.terms_at)), work(worker, plan_.tiles_at)};
  }
  R* z(int l, i64 sample) const { return values_ + plan_.z_at[l] + sample * plan_.z_size(l); }
  R* rz(int l, i64 sample) const { return scratch_ + (plan_.rz_at[l]) + sample * plan_.z_size(l); }
  bool normed(int l) const { return plan_.stage(l).norm != NormKind::None; }
  i64 out_size(int l) const { return plan_.out_size(l); }
  StageProduct<Team> product(int l) const { return plan_.product(l, n_); }
  // f(the tail of stage l)
  template <class F>
  void with_tail(int l, i64 worker, F f) const {
    if (PooledTail<Team>::takes(plan_.stage(l)))
      f(PooledTail<Team>(plan_, l));
    else
      f(Tail<Team>(plan_, l, work(worker, plan_.rows_at)));
  }

  // f(worker, first sample, samples)
  template <class F>
  void each_chunk(int l, F f) {
    const i64 chunks = product(l).chunks(n_);
    crew_.each(chunks, [&](i64 worker, i64 chunk) {
      const i64 first = n_ * chunk / chunks;
      f(worker, first, n_ * (chunk + 1) / chunks - first);
    });
  }

  Images<R> moved(Images<R> images, i64 samples) const {
    images.p += samples * images.sample;
    return images;
  }

  // Everything that a norm multiplies with or adds, for one sample.
  Constants<R> constants(int l, i64 sample) const {
    const i64 ld = plan_.ld(l), set = plan_.is_one_set(l) ? 0 : sample;
    const R* own = values_ + plan_.constants_at[l] + set * 2 * ld;
    const R* r_own = at(plan_.rconstants_at[l]) + set * 2 * ld;
    const R* gradient = at(plan_.gconstants_at) + set * 4 * ld;
    const auto parameter = [&](const R* vector, i64 offset, i64 fallback) {
      return vector && offset >= 0 ? vector + offset : at(fallback);
    };
    const R* v = r_ ? v_ : nullptr;
    return {own, own + ld,
            parameter(theta_, plan_.gamma_at[l], plan_.ones_at),
            parameter(theta_, plan_.beta_at[l], plan_.zeros_at),
            r_own, r_own + ld,
            parameter(v, plan_.gamma_at[l], plan_.zeros_at),
            parameter(v, plan_.beta_at[l], plan_.zeros_at),
            gradient, gradient + ld, gradient + 2 * ld, gradient + 3 * ld};
  }

  // Of one sample: what is summed over its pixels, up to four values a channel.
  R* sums(int l, i64 sample) const { return scratch_ + plan_.sums_at + sample * 4 * plan_.ld(l); }

  const Plan& plan_;
  R* scratch_;
  const Crew& crew_;
  const R* x_ = nullptr;                      // the samples taken, [n, C, H, W]
  i64 n_ = 0;
  const R *theta_ = nullptr, *v_ = nullptr;   // parameters, and the direction of an R-pass
  R* values_ = nullptr;                       // z and the norms' constants
  int side_ = 0;                              // which of two buffers g and rg are
  bool r_ = false;                            // is this an R-pass?
};

}  // namespace fastmeta::FASTMETA_ISA
