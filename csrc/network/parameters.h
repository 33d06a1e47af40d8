// Where the parameters of one team lie, whatever the layers are that own them.
#pragma once

namespace fastmeta::FASTMETA_ISA {

// Bytes of values that the tasks of a call keep from forward to backward, at most.
constexpr i64 most_kept = i64(1) << 30;

// A parameter tensor as a matrix [taps * rows][columns] in team layout. A weight [O, I] is its
// transpose (one tap); of a weight [O, I, kh, kw] every tap (kh, kw) is a transpose of its own.
struct Piece {
  int parameter;
  i64 at, shared_at;  // in theta, and in what all tasks share
  i64 taps, rows, columns;
  i64 tap_step, row_step, column_step;  // in PyTorch's layout
  i64 first = 0;  // the row that a block of a cluster begins with
  FASTMETA_BOTH i64 elements() const { return taps * rows * columns; }
};

// One tap of a piece.
struct View {
  int parameter;
  i64 at, shared_at, offset;
  i64 rows, columns, row_step, column_step;
};

// What becomes of a weight gradient; c and from are in team layout, rate in shared layout.
template <class R, class RateBase = const R*>
struct GradientTarget {
  Finish finish;
  R* c;
  const R* from = nullptr;
  RateBase rate{};
  R scale = 1;
};

template <class Team>
struct Parameters {
  using R = typename Team::Real;
  static constexpr bool has_moments = false;  // of norms; see ForwardOut

  typename Team::Loop loop;
  Piece pieces[Team::max_pieces];
  int n_pieces = 0;
  i64 theta_size = 0, shared_size = 0;
  bool all_shared = true;  // no parameter has a task dimension
  i64 rate_steps = 1;      // 1: the same rates at every step
  const Rate<R>* one_rate = nullptr;  // one number a step, of every parameter
  i64 kept_steps = 1;      // the first steps whose values of the support are kept, if any are
  int blocks;              // of a cluster, which share a task
  i64 dual_size = 0;       // of theta, where dual.h keeps what stands for the first layer's weights

  explicit Parameters(const InnerLoop<R>& l, int sharing = 1) : loop(l), blocks(sharing) {
    for (int p = 0; p < loop.network.n_parameters; ++p) {
      if (loop.rates[p].data && loop.rates[p].step_stride) rate_steps = larger(1, loop.steps);
      all_shared = all_shared && !loop.parameters[p].task_stride;
    }
    if (Team::shared_layout || Team::steps_by_one_rate) one_rate = find_one_rate();
  }

  FASTMETA_BOTH bool has_rate(int parameter) const {
    return parameter >= 0 && loop.rates[parameter].data;
  }
  // From a row of rates to the next one, in shared layout: where one number is the rate of all of a
  // tensor, there is one row, which the first-level cache keeps.
  FASTMETA_BOTH i64 rate_row(int parameter, i64 columns) const {
    return has_rate(parameter) && loop.rates[parameter].n > 1 ? Team::shared_stride(columns) : 0;
  }
  FASTMETA_BOTH bool per_task(int parameter) const {
    return loop.parameters[parameter].task_stride;
  }

  // The blocks of a cluster share the rows of every matrix: each has the next `share` of n.
  FASTMETA_BOTH i64 share(i64 n) const {
    if constexpr (Team::shares) return Team::share(n, blocks);
    return n;
  }
  FASTMETA_BOTH i64 first(i64 n, i64 rank) const { return smaller(n, rank * share(n)); }
  FASTMETA_BOTH i64 held(i64 n, i64 rank) const { return smaller(share(n), n - first(n, rank)); }
  // Those of the block that asks.
  FASTMETA_CODE i64 first(i64 n) const {
    if constexpr (Team::shares) return first(n, Team::rank());
    return 0;
  }
  FASTMETA_CODE i64 held(i64 n) const {
    if constexpr (Team::shares) return held(n, Team::rank());
    return n;
  }

  i64 teams() const { return ceil_div(loop.tasks, Team::tasks); }
  FASTMETA_BOTH Slice slice(i64 team) const {
    const i64 first = team * Team::tasks;
    return {first, smaller(Team::tasks, loop.tasks - first)};
  }

  template <class F>
  FASTMETA_CODE void each_piece(F f) const {
    for (int i = 0; i < n_pieces; ++i) {
      if constexpr (Team::shares) {
        Piece p = pieces[i];
        p.first = first(p.rows), p.rows = held(p.rows);
        f(p);
      } else {
        f(pieces[i]);
      }
    }
  }
  template <class F>
  FASTMETA_CODE void each_view(F f) const {
    each_piece([&](const Piece& p) {
      for (i64 tap = 0; tap < p.taps; ++tap)
        f(View{p.parameter, p.at + tap * p.rows * Team::stride(p.columns),
               p.shared_at + tap * p.rows * Team::shared_stride(p.columns),
               tap * p.tap_step + p.first * p.row_step, p.rows, p.columns, p.row_step,
               p.column_step});
    });
  }
  FASTMETA_BOTH i64 elements(int parameter) const {
    for (int i = 0; i < n_pieces; ++i)
      if (pieces[i].parameter == parameter) return pieces[i].elements();
    return 0;
  }

 private:
  // Not only the same address: rates of every step may begin with the one of another parameter.
  const Rate<R>* find_one_rate() const {
    if (!loop.network.n_parameters) return nullptr;
    const Rate<R>& first = loop.rates[0];
    for (int p = 0; p < loop.network.n_parameters; ++p) {
      const Rate<R>& rate = loop.rates[p];
      const bool same = rate.data == first.data && rate.step_stride == first.step_stride;
      if (rate.n != 1 || !same) return nullptr;
    }
    return first.data ? &first : nullptr;
  }

 protected:
  void add(Piece p) {
    p.at = theta_size, p.shared_at = shared_size;
    theta_size += p.taps * share(p.rows) * Team::stride(p.columns);
    shared_size += p.taps * share(p.rows) * Team::shared_stride(p.columns);
    pieces[n_pieces++] = p;
  }
  void add_row(int parameter, i64 columns) { add({parameter, 0, 0, 1, 1, columns, 0, 0, 1}); }
  void end_layer() { shared_size = round_up(shared_size, Team::W); }
};

}  // namespace fastmeta::FASTMETA_ISA
