// What both teams of a CPU have in common: one thread, which waits for nobody and takes all samples
// of a task at once.
#pragma once

#include "inner_products.h"

namespace fastmeta::FASTMETA_ISA {

template <class R>
struct Ones {
  alignas(FASTMETA_VECTOR_BYTES) R v[lanes<R>];
  constexpr Ones() : v() {
    for (R& one : v) one = 1;
  }
};
template <class R>
inline constexpr Ones<R> all_ones{};

template <class R>
struct CpuTeam {
  using Loop = const InnerLoop<R>&;
  using RateBase = const R*;  // of one step, in shared layout
  static constexpr int max_nodes = 256, max_pieces = 1024;
  static constexpr bool splits = false;           // the samples of a task into parts
  static constexpr bool shares = false;           // a task with other teams
  static constexpr bool keeps_away = false;       // theta_k in memory that products do not read
  static constexpr bool keeps_values = true;      // of the samples, where computing again costs more
  static constexpr bool sums_in_output = false;   // the gradient of the support inputs
  static constexpr bool sums_in_place = false;    // the rates' gradients, task after task
  static constexpr bool shared_layout = true;     // parameters and rates are copied into it
  static constexpr bool steps_by_one_rate = false;  // where it cannot read the rate itself
  static constexpr bool has_dual_form = false;      // of the first layer
  static constexpr bool has_lanes_along_inputs = false;  // of layers with few outputs
  static constexpr bool runs_programs = true;     // of losses, a vector of samples at a time
  static constexpr bool takes_places = true;      // of labels
  static i64 program_scratch(const RowProgram& program, i64) { return 4 * program.size * lanes<R>; }

  static FASTMETA_INLINE const R* ones() { return all_ones<R>.v; }
  static FASTMETA_INLINE void barrier() {}
  // f(i) for the first scalar of every vector of n scalars.
  template <class F>
  static FASTMETA_INLINE void each(i64 n, F f) {
    for (i64 i = 0; i < n; i += lanes<R>) f(i);
  }
  template <class F>
  static FASTMETA_INLINE void each_row(i64 rows, F f) {
    for (i64 s = 0; s < rows; ++s) f(s);
  }
  // The sum of f(s) over rows, in their order.
  template <class F>
  static FASTMETA_INLINE Vec<R> sum_rows(i64 rows, R*, F f) {
    Vec<R> sum{};
    for (i64 s = 0; s < rows; ++s) sum += f(s);
    return sum;
  }
  static void zero(R* p, i64 n) { std::memset(p, 0, sizeof(R) * size_t(n)); }
  static void copy(R* to, const R* from, i64 n) { std::memcpy(to, from, sizeof(R) * size_t(n)); }
  static void add(R* sum, const R* more, i64 n) {
    each(n, [&](i64 i) { store(sum + i, load(sum + i) + load(more + i)); });
  }
};

}  // namespace fastmeta::FASTMETA_ISA
