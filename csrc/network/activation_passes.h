// What the passes do where a node is an activation. each(f) is f(i) for every vector that a team goes on
// with; what is there beforehand and what is written may be one matrix.
#pragma once

#include "activation.h"

namespace fastmeta::FASTMETA_ISA {

// What an activation left. By value: a store in a loop might change what lies elsewhere, for all that the
// compiler knows.
template <class R>
struct Left {
  R *value, *s1, *s2;

  template <class F>
  FASTMETA_INLINE Vec<R> first(const F& f, i64 i) const {
    return f.first(load(value + i), f.keeps_s1 ? load(s1 + i) : Vec<R>{});
  }
  template <class F>
  FASTMETA_INLINE Vec<R> second(const F& f, i64 i) const {
    return f.second(load(value + i), f.keeps_s1 ? load(s1 + i) : Vec<R>{},
                    f.keeps_s2 ? load(s2 + i) : Vec<R>{});
  }
};

template <class R, class Each>
FASTMETA_CODE void activate(const Node& node, const R* z, Left<R> to, Each each) {
  with_activation<R>(node, [&](auto f) {
    each([=](i64 i) {
      Vec<R> first{}, second{};
      store(to.value + i, f.apply(load(z + i), first, second));
      if (f.keeps_s1) store(to.s1 + i, first);
      if (f.keeps_s2) store(to.s2 + i, second);
    });
  });
}

// below = above f'
template <class R, class Each>
FASTMETA_CODE void activation_backward(const Node& node, const R* above, R* below, Left<R> at, Each each) {
  with_activation<R>(node, [&](auto f) {
    each([=](i64 i) { store(below + i, load(above + i) * at.first(f, i)); });
  });
}

// r = f' rz
template <class R, class Each>
FASTMETA_CODE void r_activate(const Node& node, const R* rz, R* r, Left<R> at, Each each) {
  with_activation<R>(node, [&](auto f) {
    each([=](i64 i) { store(r + i, at.first(f, i) * load(rz + i)); });
  });
}

// rg = rg f' + g f'' rz, the second term unless rz is nullptr; g goes through the activation as well,
// unless it is kept.
template <class R, class Each>
FASTMETA_CODE void r_activation_backward(const Node& node, R* rg, R* g, const R* rz, bool g_goes_on,
                                         Left<R> at, Each each) {
  with_activation<R>(node, [&](auto f) {
    each([=](i64 i) {
      const Vec<R> d = at.first(f, i);
      Vec<R> r = load(rg + i) * d;
      if (f.curved && rz) r += load(g + i) * at.second(f, i) * load(rz + i);
      store(rg + i, r);
      if (g_goes_on) store(g + i, load(g + i) * d);
    });
  });
}

}  // namespace fastmeta::FASTMETA_ISA
