// What a stage reads: the network's input, or what other stages' tails make of their z; and where the
// gradient of it goes.
#pragma once

#include "stage_join.h"
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

  StageJoin<Team> join(int l) const { return {plan_.stage(l)}; }

  // What stage l reads, of samples first..first + n.
  void put_input_of(int l, i64 worker, i64 first, i64 n, const Images<R>& to) {
    if (join(l).reads_one()) return join(l).take_one(to, put_own_of(l, worker, first, n), n);
    put_output_of(plan_.input(l), worker, first, n, to);
    if (plan_.joins(l)) join(l).join(to, put_other_of(l, worker, first, n), n);
  }

  // Its derivative; false where that is 0 everywhere.
  bool put_r_input_of(int l, i64 worker, i64 first, i64 n, const Images<R>& to) {
    if (join(l).reads_one()) {
      const Images<R> r_own = product(l).bordered_input(work(worker, plan_.rx_at), n);
      const bool any = put_r_output_of(plan_.input(l), worker, first, n, r_own);
      if (any) join(l).take_one(to, r_own, n);
      return any;
    }
    const bool any = put_r_output_of(plan_.input(l), worker, first, n, to);
    if (!plan_.joins(l)) return any;
    const StageJoin<Team> own = join(l);
    if (any && own.multiplies()) own.join(to, put_other_of(l, worker, first, n), n);
    const Images<R> r_other = own.others(work(worker, plan_.r_other_at));
    const bool any_other = put_r_output_of(plan_.other(l), worker, first, n, r_other);
    if (!any_other && (!any || !own.puts_beside())) return any;
    if (!any) zero(to.p, n * plan_.z_size(l));
    if (!any_other) zero(r_other.p, n * out_size(plan_.other(l)));
    if (own.multiplies()) own.add_product(to, put_own_of(l, worker, first, n), r_other, n);
    else own.join(to, r_other, n);
    return true;
  }

  // With the gradients of z, those of what stage l reads: of its input to where backward leaves them, and on.
  void join_gradients(int l, i64 worker, i64 first, i64 n, bool r, const Images<R>& gz,
                      const Images<R>& rgz) {
    const StageProduct<Team> whole = product(l);
    const i64 offset = first * whole.in_size();
    const Images<R> below = whole.input_gradient_images(g_below(l) + offset);
    const Images<R> r_below = whole.input_gradient_images(rg_below(l) + offset);
    if (join(l).reads_one()) {
      one_gradients(l, n, gz, below);
      if (r) one_gradients(l, n, rgz, r_below);
      return spread_gradient(l, first, n, r);
    }
    const Images<R> other = join(l).others(work(worker, plan_.other_g_at));
    const Images<R> r_other = join(l).others(work(worker, plan_.r_other_g_at));
    if (join(l).puts_beside()) {
      join(l).part(gz, below, other, n);
      if (r) join(l).part(rgz, r_below, r_other, n);
    } else if (join(l).multiplies()) {
      multiply_gradients(l, worker, first, n, gz, r ? &rgz : nullptr, {below, other}, {r_below, r_other});
    } else {
      sum_gradients(l, n, gz, {below, other});
      if (r) sum_gradients(l, n, rgz, {r_below, r_other});
    }
    spread_gradient(l, first, n, r, other.p, r_other.p);
  }

  // Is the gradient of what stage l reads wanted?
  bool goes_deeper(int l) const {
    return wanted(plan_.input(l)) || (plan_.other(l) != no_stage && wanted(plan_.other(l)));
  }

  // Where the backward of stage l leaves the gradient of its input, all samples'.
  R* g_below(int l) { return leaves_at_once(l) ? g(plan_.input(l)) : at(plan_.g_at[1 - side_]); }
  R* rg_below(int l) { return leaves_at_once(l) ? rg(plan_.input(l)) : at(plan_.rg_at[1 - side_]); }

  // Take it on to the stages that have other readers, for samples first..first + n; that of what is joined
  // to the input, where it is another one, is in `of_other`.
  void spread_gradient(int l, i64 first, i64 n, bool r, const R* of_other = nullptr,
                       const R* r_of_other = nullptr) {
    const int m = plan_.input(l), other = plan_.other(l);
    const R *own = g_below(l) + first * out_size(m), *r_own = rg_below(l) + first * out_size(m);
    if (plan_.branches(m) && !leaves_at_once(l) && wanted(m))
      take_gradient(m, first, n, own, r ? r_own : nullptr, false);
    if (other != no_stage && wanted(other))
      take_gradient(other, first, n, of_other ? of_other : own, !r ? nullptr : of_other ? r_of_other : r_own,
                    plan_.last_reader(other) == l && other != m);
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

  static void zero(R* p, i64 n) { std::memset(p, 0, sizeof(R) * size_t(n)); }

  // What is joined in stage l: its input, and the other one.
  Images<R> put_own_of(int l, i64 worker, i64 first, i64 n) {
    const Images<R> own = product(l).bordered_input(work(worker, plan_.x_at), n);
    put_output_of(plan_.input(l), worker, first, n, own);
    return own;
  }
  Images<R> put_other_of(int l, i64 worker, i64 first, i64 n) {
    const Images<R> other = join(l).others(work(worker, plan_.other_at));
    put_output_of(plan_.other(l), worker, first, n, other);
    return other;
  }

  struct Both {
    Images<R> own, other;
  };

  void one_gradients(int l, i64 n, const Images<R>& gz, const Images<R>& below) const {
    zero(below.p, n * out_size(plan_.input(l)));
    join(l).add_to_one(below, gz, n);
  }
  void sum_gradients(int l, i64 n, const Images<R>& gz, const Both& to) const {
    std::memcpy(to.own.p, gz.p, sizeof(R) * size_t(n * plan_.z_size(l)));
    zero(to.other.p, n * out_size(plan_.other(l)));
    join(l).add_to_other(to.other, gz, nullptr, n);
  }

  // g_a = gz b, g_b = gz a, and Rg_a = Rgz b + gz Rb, Rg_b = Rgz a + gz Ra
  void multiply_gradients(int l, i64 worker, i64 first, i64 n, const Images<R>& gz, const Images<R>* rgz,
                          const Both& to, const Both& r_to) {
    const StageJoin<Team> own = join(l);
    const Images<R> a = put_own_of(l, worker, first, n), b = put_other_of(l, worker, first, n);
    const auto multiply = [&](const Images<R>& g, const Both& out) {
      std::memcpy(out.own.p, g.p, sizeof(R) * size_t(n * plan_.z_size(l)));
      own.join(out.own, b, n);
      zero(out.other.p, n * out_size(plan_.other(l)));
      own.add_to_other(out.other, g, &a, n);
    };
    multiply(gz, to);
    if (!rgz) return;
    multiply(*rgz, r_to);
    const Images<R> ra = product(l).bordered_input(work(worker, plan_.rx_at), n);
    if (put_r_output_of(plan_.input(l), worker, first, n, ra)) own.add_to_other(r_to.other, gz, &ra, n);
    const Images<R> rb = own.others(work(worker, plan_.r_other_at));
    if (put_r_output_of(plan_.other(l), worker, first, n, rb)) own.add_product(r_to.own, gz, rb, n);
  }

  void take_gradient(int m, i64 first, i64 n, const R* plain, const R* r, bool first_part) {
    const i64 offset = first * out_size(m), size = n * out_size(m);
    take(g(m) + offset, plain, size, first_part);
    if (r) take(rg(m) + offset, r, size, first_part);
  }
  static void take(R* to, const R* from, i64 n, bool first_part) {
    if (first_part) std::memcpy(to, from, sizeof(R) * size_t(n));
    else add_to(to, from, n);
  }
};

}  // namespace fastmeta::FASTMETA_ISA
