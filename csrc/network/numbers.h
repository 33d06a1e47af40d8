// Numbers with a derivative along one direction: what is computed with them has its own beside it.
// Whatever is written once for vectors and for these is differentiated by running it on these.
//
// Products of such numbers are those of each side's `multiply_rows(terms, n_terms, target, m, n)`.
#pragma once

#include "product.h"

namespace fastmeta::FASTMETA_ISA {

template <class R>
struct DualNumber {
  Vec<R> value, slope;

  FASTMETA_INLINE DualNumber operator-() const { return {-value, -slope}; }
  FASTMETA_INLINE DualNumber operator+(DualNumber o) const { return {value + o.value, slope + o.slope}; }
  FASTMETA_INLINE DualNumber operator-(DualNumber o) const { return {value - o.value, slope - o.slope}; }
  FASTMETA_INLINE DualNumber operator*(DualNumber o) const {
    return {value * o.value, slope * o.value + value * o.slope};
  }
  FASTMETA_INLINE DualNumber operator/(DualNumber o) const {
    const Vec<R> ratio = value / o.value;
    return {ratio, (slope - ratio * o.slope) / o.value};
  }
};

// A matrix in a row: how far its rows and columns are from each other, in numbers.
template <class Row>
struct Operand {
  Row row;
  i64 down, across;
};

template <class R, class Row>
FASTMETA_CODE Term<R> term_of(const R* a, const Operand<Row>& of_a, const R* b, const Operand<Row>& of_b, i64 depth) {
  constexpr i64 W = lanes<R>;
  return {a, of_a.down * W, of_a.across * W, b, of_b.down * W, of_b.across * W, depth};
}
template <class R>
FASTMETA_CODE Target<R> target_of(R* to, i64 columns, bool adds) {
  return {to, columns * lanes<R>, adds ? Finish::Add : Finish::Store};
}

// What can be done with either kind of number: `N`. A row is where numbers lie side by side, a vector each.
template <class R_>
struct DualNumbers {
  using R = R_;
  using N = DualNumber<R>;
  static constexpr bool values_are_there = false;
  struct Row {
    R *values, *slopes;
    FASTMETA_INLINE N operator[](i64 j) const {
      return {load(values + j * lanes<R>), load(slopes + j * lanes<R>)};
    }
    FASTMETA_INLINE void put(i64 j, N x) const {
      store(values + j * lanes<R>, x.value);
      store(slopes + j * lanes<R>, x.slope);
    }
    FASTMETA_INLINE Row operator+(i64 j) const {
      return {values + j * lanes<R>, slopes + j * lanes<R>};
    }
  };
  static FASTMETA_INLINE Vec<R> value(N x) { return x.value; }
  static FASTMETA_INLINE N constant(Vec<R> x) { return {x, Vec<R>{}}; }
  // f(x), by its value and derivative there
  static FASTMETA_INLINE N chain(N x, Vec<R> f, Vec<R> first) { return {f, first * x.slope}; }
  // The same where the derivative may be infinite, as at the root of 0: what does not move stays.
  static FASTMETA_INLINE N chain_from_edge(N x, Vec<R> f, Vec<R> first) {
    return {f, select(x.slope == Vec<R>{}, Vec<R>{}, first * x.slope)};
  }
  static FASTMETA_INLINE N pick(Mask<R> mask, N a, N b) {
    return {select(mask, a.value, b.value), select(mask, a.slope, b.slope)};
  }
  FASTMETA_CODE static void multiply(const Operand<Row>& a, const Operand<Row>& b, i64 depth, Row to, i64 m, i64 n,
                       bool adds) {
    const Target<R> values = target_of(to.values, n, adds), slopes = target_of(to.slopes, n, adds);
    const Term<R> plain = term_of(a.row.values, a, b.row.values, b, depth);
    const Term<R> derived[2] = {term_of(a.row.slopes, a, b.row.values, b, depth),
                                term_of(a.row.values, a, b.row.slopes, b, depth)};
    multiply_rows(&plain, 1, values, m, n);
    multiply_rows(derived, 2, slopes, m, n);
  }
};
template <class R_>
struct PlainNumbers {
  using R = R_;
  using N = Vec<R>;
  static constexpr bool values_are_there = false;
  struct Row {
    R* values;
    FASTMETA_INLINE N operator[](i64 j) const { return load(values + j * lanes<R>); }
    FASTMETA_INLINE void put(i64 j, N x) const { store(values + j * lanes<R>, x); }
    FASTMETA_INLINE Row operator+(i64 j) const { return {values + j * lanes<R>}; }
  };
  static FASTMETA_INLINE Vec<R> value(N x) { return x; }
  static FASTMETA_INLINE N constant(Vec<R> x) { return x; }
  static FASTMETA_INLINE N chain(N, Vec<R> f, Vec<R>) { return f; }
  static FASTMETA_INLINE N chain_from_edge(N, Vec<R> f, Vec<R>) { return f; }
  static FASTMETA_INLINE N pick(Mask<R> mask, N a, N b) { return select(mask, a, b); }
  FASTMETA_CODE static void multiply(const Operand<Row>& a, const Operand<Row>& b, i64 depth, Row to, i64 m, i64 n,
                       bool adds) {
    const Term<R> term = term_of(a.row.values, a, b.row.values, b, depth);
    multiply_rows(&term, 1, target_of(to.values, n, adds), m, n);
  }
};

// Dual numbers where a forward has put all values: what runs on these brings the slopes.
template <class R_>
struct SlopeNumbers : DualNumbers<R_> {
  using R = R_;
  using N = DualNumber<R>;
  static constexpr bool values_are_there = true;
  struct Row : DualNumbers<R>::Row {
    FASTMETA_INLINE void put(i64 j, N x) const { store(this->slopes + j * lanes<R>, x.slope); }
    FASTMETA_INLINE Row operator+(i64 j) const {
      return {{this->values + j * lanes<R>, this->slopes + j * lanes<R>}};
    }
  };
  FASTMETA_CODE static void multiply(const Operand<Row>& a, const Operand<Row>& b, i64 depth, Row to, i64 m, i64 n,
                       bool adds) {
    const Term<R> derived[2] = {term_of(a.row.slopes, a, b.row.values, b, depth),
                                term_of(a.row.values, a, b.row.slopes, b, depth)};
    multiply_rows(derived, 2, target_of(to.slopes, n, adds), m, n);
  }
};

}  // namespace fastmeta::FASTMETA_ISA
