// What a stage reads: the network's input, or what other stages' tails make of their z; and where the
// gradient of it goes.
#pragma once

#include "stage_state.h"

namespace fastmeta::FASTMETA_ISA {

template <class Team>
class StageInputs : protected StageState<Team> {
 protected:
  using Base = StageState<Team>;
  using R = typename Team::Real;
  static constexpr i64 W = Team::W;
  using Base::at, Base::constants, Base::g, Base::moved, Base::out_size, Base::plan_, Base::product,
      Base::rg, Base::rz, Base::side_, Base::with_tail, Base::work, Base::x_, Base::z;
  using Base::Base;

  // What stage l reads, of samples first..first + n.
  void put_input_of(int l, i64 worker, i64 first, i64 n, const Images<R>& to) {
    put_output_of(plan_.input(l), worker, first, n, to);
    if (!plan_.adds(l)) return;
    const Images<R> other = product(l).bordered_input(work(worker, plan_.x_at), n);
    put_output_of(plan_.added(l), worker, first, n, other);
    add_to(to.p, other.p, n * plan_.z_size(l));
  }

  // Its derivative; false where that is 0 everywhere.
  bool put_r_input_of(int l, i64 worker, i64 first, i64 n, const Images<R>& to) {
    const bool any = put_r_output_of(plan_.input(l), worker, first, n, to);
    if (!plan_.adds(l)) return any;
    if (!any) return put_r_output_of(plan_.added(l), worker, first, n, to);
    const Images<R> other = product(l).bordered_input(work(worker, plan_.rx_at), n);
    if (put_r_output_of(plan_.added(l), worker, first, n, other))
      add_to(to.p, other.p, n * plan_.z_size(l));
    return true;
  }

  // Is the gradient of what stage l reads wanted?
  bool goes_deeper(int l) const {
    return wanted(plan_.input(l)) || (plan_.adds(l) && wanted(plan_.added(l)));
  }

  // Where the backward of stage l leaves the gradient of its input, all samples'.
  R* g_below(int l) { return leaves_at_once(l) ? g(plan_.input(l)) : at(plan_.g_at[1 - side_]); }
  R* rg_below(int l) { return leaves_at_once(l) ? rg(plan_.input(l)) : at(plan_.rg_at[1 - side_]); }

  // Take it on to the stages that have other readers, for samples first..first + n.
  void spread_gradient(int l, i64 first, i64 n, bool r) {
    const int m = plan_.input(l), added = plan_.added(l);
    if (plan_.branches(m) && !leaves_at_once(l) && wanted(m))
      take_gradient(l, m, first, n, r, false);
    if (plan_.adds(l) && wanted(added))
      take_gradient(l, added, first, n, r, plan_.last_reader(added) == l && added != m);
  }

  static void add_to(R* sum, const R* part, i64 n) {
    for (i64 i = 0; i < n; i += W) store(sum + i, load(sum + i) + load(part + i));
  }

  int lowest_wanted_ = 0;  // the stage down to which a backward goes, -1: to the network's input

 private:
  // The network's own input, [n, C, H, W], as channels last.
  void gather(i64 first, i64 n, const Images<R>& to) const {
    const Stage& s = plan_.stage(0);
    const R* from = x_ + first * plan_.sample_size();
    const i64 pixels = s.in_h * s.in_w;
    for (i64 i = 0; i < n; ++i, from += plan_.sample_size())
      for (i64 y = 0; y < s.in_h; ++y)
        for (i64 x = 0; x < s.in_w; ++x) {
          R* pixel = to.at(i, y, x);
          for (i64 c = 0; c < s.in_c; ++c) pixel[c] = from[c * pixels + y * s.in_w + x];
          for (i64 c = s.in_c; c < to.pixel; ++c) pixel[c] = 0;
        }
  }

  void put_output_of(int m, i64 worker, i64 first, i64 n, const Images<R>& to) {
    if (m < 0) return gather(first, n, to);
    with_tail(m, worker, [&](auto below) {
      for (i64 i = 0; i < n; ++i)
        below.forward(z(m, first + i), constants(m, first + i), moved(to, i));
    });
  }

  bool put_r_output_of(int m, i64 worker, i64 first, i64 n, const Images<R>& to) {
    if (m < plan_.lowest_adapted) return false;
    with_tail(m, worker, [&](auto below) {
      for (i64 i = 0; i < n; ++i)
        below.r_forward(z(m, first + i), rz(m, first + i), constants(m, first + i), moved(to, i));
    });
    return true;
  }

  bool wanted(int m) const { return m >= lowest_wanted_; }
  // The first of a sum's parts needs no place of its own.
  bool leaves_at_once(int l) const {
    const int m = plan_.input(l);
    return plan_.branches(m) && plan_.last_reader(m) == l;
  }

  void take_gradient(int l, int m, i64 first, i64 n, bool r, bool first_part) {
    const i64 offset = first * out_size(m), size = n * out_size(m);
    take(g(m) + offset, g_below(l) + offset, size, first_part);
    if (r) take(rg(m) + offset, rg_below(l) + offset, size, first_part);
  }
  static void take(R* to, const R* from, i64 n, bool first_part) {
    if (first_part) std::memcpy(to, from, sizeof(R) * size_t(n));
    else add_to(to, from, n);
  }
};

}  // namespace fastmeta::FASTMETA_ISA
