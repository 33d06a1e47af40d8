// Register-tiled products C[m, n] = sum over terms and k of A(m, k) B(k, n), for any strides.
//
// Rows m and depth k are elements; columns n are vectors. Lane says how an element of A meets a column
// of B: Broadcast (lanes are neighbouring columns of one task), Direct (lanes are tasks), Shared (lanes are
// tasks that have B and the bias in common, so that a column is a number) or Spread (lanes are samples of a
// few tasks, and a column has a number of each task). products.cpp compiles them.
#pragma once

#include "simd.h"
//
#include "../network/product.h"

namespace fastmeta::FASTMETA_ISA {

struct Broadcast {
  static constexpr bool a_is_vector = false;
  template <class R>
  static constexpr i64 b_width = lanes<R>;  // scalars of a column
  template <class R>
  static FASTMETA_INLINE Vec<R> element(const R* a) { return splat(*a); }
  template <class R>
  static FASTMETA_INLINE Vec<R> column(const R* b) { return load(b); }
};
// The same of columns that are anywhere: samples of a task, a vector of them here and one there.
struct Apart : Broadcast {};
struct Direct {
  static constexpr bool a_is_vector = true;
  template <class R>
  static constexpr i64 b_width = lanes<R>;
  template <class R>
  static FASTMETA_INLINE Vec<R> element(const R* a) { return load(a); }
  template <class R>
  static FASTMETA_INLINE Vec<R> column(const R* b) { return load(b); }
};
struct Shared {
  static constexpr bool a_is_vector = true;
  template <class R>
  static constexpr i64 b_width = 1;
  template <class R>
  static FASTMETA_INLINE Vec<R> element(const R* a) { return load(a); }
  template <class R>
  static FASTMETA_INLINE Vec<R> column(const R* b) { return splat(*b); }
};
struct Spread {
  static constexpr bool a_is_vector = true;
  template <class R>
  static constexpr i64 b_width = few<R>;
  template <class R>
  static FASTMETA_INLINE Vec<R> element(const R* a) { return load(a); }
  template <class R>
  static FASTMETA_INLINE Vec<R> column(const R* b) { return spread(b); }
};

// Accumulators, one row of B and an element of A have to fit the register file:
// 32 registers with AVX-512, 16 otherwise.
#ifndef FASTMETA_REGISTERS
#define FASTMETA_REGISTERS (FASTMETA_VECTOR_BYTES == 64 ? 32 : 16)
#endif
constexpr int registers = FASTMETA_REGISTERS;
constexpr int max_columns = registers == 32 ? 5 : registers == 16 ? 3 : 2;
constexpr int max_rows(int columns) {
  const int fit = (registers - 1 - columns) / columns;
  return fit < 8 ? fit : 8;
}

// n cut into as few tiles as possible, all of one size or one less: 10 rows are 5 + 5, not 6 + 4.
struct Cut {
  i64 tiles, size, large;  // `large` tiles of `size`, the others of size - 1
  Cut(i64 n, i64 most) : tiles(ceil_div(n, most)), size(ceil_div(n, tiles)) {
    large = n - tiles * (size - 1);
  }
};

// One running sum over 1600 features loses twice what PyTorch loses; sums of at most `deepest` terms,
// added up, lose less.
constexpr i64 deepest = 256;

// One running sum over the whole depth. Finish is as Target has it.
template <class Lane, class R>
void product_at_once(const Term<R>* terms, int n_terms, const Target<R>& target, i64 m, i64 n);

// The same of shorter sums where the depth is large.
template <class Lane, class R>
void product(const Term<R>* terms, int n_terms, const Target<R>& target, i64 m, i64 n);

// Of rows of a program, whose numbers are vectors (network/numbers.h).
template <class R>
FASTMETA_INLINE void multiply_rows(const Term<R>* terms, int n_terms, const Target<R>& target, i64 m, i64 n) {
  product<Direct>(terms, n_terms, target, m, n);
}

// Of vectors whose lanes are samples of a few tasks, also summed over the samples: C has a number of each
// task, `groups` columns a vector. n counts columns; B's are vectors one after the other.
template <class R>
void product_over_groups(const Term<R>* terms, int n_terms, const Target<R>& target, i64 m, i64 n);

}  // namespace fastmeta::FASTMETA_ISA
