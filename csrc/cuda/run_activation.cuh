// Activations and their derivatives, four numbers at a time.
#pragma once

#include "run_tensors.cuh"
//
#include "../network/activation.h"

namespace fastmeta::cuda {

// What an activation leaves.
template <class R>
struct LeftBy {
  const R *value, *s1, *s2;
};
template <class R>
struct LeftOf {
  R *value, *s1, *s2;
};

// Functions that are not inlined get numbers and addresses of shared memory, nothing of the kernel's
// parameters.
template <class R>
struct Activation {
  ActivationKind kind;
  R a, b;
};

template <class R, class F>
FASTMETA_INLINE void with_kind(const Activation<R> of, F f) {
  Node node{};
  node.activation = of.kind, node.a = double(of.a), node.b = double(of.b);
#ifdef FASTMETA_COMPILED
  Compiled<R>::with_activation(node, f);
#else
  with_activation<R>(node, f);
#endif
}

template <class R>
FASTMETA_INLINE Activation<R> activation(const Here<R>& here, const Op& op) {
  const Node node = here.known().nodes[op.activation];
  return {node.activation, R(node.a), R(node.b)};
}

template <class R>
FASTMETA_INLINE LeftBy<R> left(const Here<R>& here, const Op& op) {
  return {here.at(op.value), here.at(op.s1), here.at(op.s2)};
}

// Up to four numbers of a row, at places `step` apart, read before any is written.
template <class R>
FASTMETA_INLINE Quad<R> some(const R* p, int step, int n) {
  Quad<R> out;
#pragma unroll
  for (int j = 0; j < 4; ++j) out.v[j] = j < n ? p[j * step] : R(0);
  return out;
}
template <class R>
FASTMETA_INLINE void put_some(R* p, const Quad<R>& q, int step, int n) {
#pragma unroll
  for (int j = 0; j < 4; ++j)
    if (j < n) p[j * step] = q.v[j];
}

// What an activation left of these.
template <class R>
struct SomeLeft {
  Quad<R> value, s1, s2;
  template <class F>
  FASTMETA_INLINE void take(const F& f, const LeftBy<R>& from, int first, int step, int n) {
    value = some(from.value + first, step, n);
    if (f.keeps_s1) s1 = some(from.s1 + first, step, n);
    if (f.keeps_s2) s2 = some(from.s2 + first, step, n);
  }
  template <class F>
  FASTMETA_INLINE R first(const F& f, int j) const {
    return f.first(value.v[j], f.keeps_s1 ? s1.v[j] : R(0));
  }
  template <class F>
  FASTMETA_INLINE R second(const F& f, int j) const {
    return f.second(value.v[j], f.keeps_s1 ? s1.v[j] : R(0), f.keeps_s2 ? s2.v[j] : R(0));
  }
};

// value = f(z), and what the derivatives need beside
template <class R>
FASTMETA_APART void activate_some(const Activation<R> of, const R* from, const LeftOf<R> to,
                                           int n) {
  with_kind(of, [&](auto f) {
    const Quad<R> z = some(from, 1, n);
    Quad<R> value, first{}, second{};
#pragma unroll
    for (int j = 0; j < 4; ++j) value.v[j] = f.apply(z.v[j], first.v[j], second.v[j]);
    put_some(to.value, value, 1, n);
    if (f.keeps_s1) put_some(to.s1, first, 1, n);
    if (f.keeps_s2) put_some(to.s2, second, 1, n);
  });
}

// g = g f'
template <class R>
FASTMETA_APART void backward_some(const Activation<R> of, R* g, const LeftBy<R> from, int first,
                                           int step, int n) {
  with_kind(of, [&](auto f) {
    SomeLeft<R> left;
    left.take(f, from, first, step, n);
    Quad<R> out = some(g + first, step, n);
#pragma unroll
    for (int j = 0; j < 4; ++j) out.v[j] *= left.first(f, j);
    put_some(g + first, out, step, n);
  });
}

// r = f' rz
template <class R>
FASTMETA_APART void r_activate_some(const Activation<R> of, R* r, const R* rz,
                                             const LeftBy<R> from, int first, int n) {
  with_kind(of, [&](auto f) {
    SomeLeft<R> left;
    left.take(f, from, first, 1, n);
    Quad<R> out = some(rz + first, 1, n);
#pragma unroll
    for (int j = 0; j < 4; ++j) out.v[j] *= left.first(f, j);
    put_some(r + first, out, 1, n);
  });
}

// rg = rg f' + g f'' rz, g = g f'; without g or rz as far as there is a derivative
template <class R>
FASTMETA_APART void r_backward_some(const Activation<R> of, R* g, R* rg, const R* rz,
                                             const LeftBy<R> from, int first, int step, int n) {
  with_kind(of, [&](auto f) {
    SomeLeft<R> left;
    left.take(f, from, first, step, n);
    const Quad<R> above = g ? some(g + first, step, n) : Quad<R>{};
    Quad<R> r = some(rg + first, step, n), through = above;
    const Quad<R> below = f.curved && rz ? some(rz + first, step, n) : Quad<R>{};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const R slope = left.first(f, j);
      r.v[j] *= slope;
      if (f.curved && rz) r.v[j] += above.v[j] * left.second(f, j) * below.v[j];
      through.v[j] *= slope;
    }
    put_some(rg + first, r, step, n);
    if (g) put_some(g + first, through, step, n);
  });
}

template <class R>
FASTMETA_INLINE LeftOf<R> left_of(const Here<R>& here, const Op& op, int place) {
  return {here.at(op.to) + place, here.at(op.s1) + place, here.at(op.s2) + place};
}

template <class R, class F>
FASTMETA_INLINE void each_row_piece(const Op& op, F f) {
  const int pieces = (op.columns + 3) / 4;
  each_element(op.rows, pieces, false,
               [&](int r, int p) { f(r, 4 * p, lesser(4, op.columns - 4 * p)); });
}

template <class R>
FASTMETA_INLINE void activation_alone(const Here<R>& here, const Op& op) {
  const Activation<R> node = activation(here, op);
  each_row_piece<R>(op, [&](int r, int c, int n) {
    const int first = r * op.to_row + c;
    const R* rz = op.rz >= 0 ? here.at(op.rz) : nullptr;
    switch (op.code) {
      case Do::Activate:
        activate_some(node, here.at(op.from) + first, left_of(here, op, first), n);
        break;
      case Do::ActivationBackward:
        backward_some(node, here.at(op.to), left(here, op), first, 1, n);
        break;
      case Do::RActivate:
        r_activate_some(node, here.at(op.to), rz, left(here, op), first, n);
        break;
      default:
        r_backward_some(node, here.at(op.to), here.at(op.r_to), rz, left(here, op), first, 1, n);
    }
  });
}

}  // namespace fastmeta::cuda
