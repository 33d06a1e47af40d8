// One call: the teams of all tasks over the threads, and the sums over tasks.
#pragma once

#include "../network/inner_loop.h"

namespace fastmeta::FASTMETA_ISA {

// to[r][c] = from[c][r], in blocks that are turned in registers; the last ones overlap those before.
template <class R>
void turn(R* to, i64 to_row, const R* from, i64 from_row, i64 rows, i64 columns) {
  constexpr i64 W = lanes<R>;
  for (i64 c = 0; c < columns; c += W)
    for (i64 r = 0; r < rows; r += W) {
      const i64 c0 = smaller(c, columns - W), r0 = smaller(r, rows - W);
      Vec<R> block[W];
      for (i64 i = 0; i < W; ++i) block[i] = load_anywhere(from + (c0 + i) * from_row + r0);
      transpose_block<R>(block);
      for (i64 i = 0; i < W; ++i) store_anywhere(to + (r0 + i) * to_row + c0, block[i]);
    }
}

// A matrix [rows][columns] out of steps in one of its layouts into others.
template <class R>
void copy_matrix(R* to, i64 to_row, i64 to_column, const R* from, i64 from_row, i64 from_column,
                 i64 rows, i64 columns) {
  if (rows >= lanes<R> && columns >= lanes<R>) {
    if (to_column == 1 && from_row == 1) return turn(to, to_row, from, from_column, rows, columns);
    if (to_row == 1 && from_column == 1) return turn(to, to_column, from, from_row, columns, rows);
  }
  for (i64 c = 0; c < columns; ++c)
    for (i64 r = 0; r < rows; ++r)
      to[r * to_row + c * to_column] = from[r * from_row + c * from_column];
}

// PyTorch's layout into shared layout.
template <class Team, class R>
void put_matrix(R* to, const R* from, const View& v) {
  copy_matrix(to, Team::shared_stride(v.columns), i64(1), from + v.offset, v.row_step, v.column_step,
              v.rows, v.columns);
}

template <class Team, class R>
void put_rate(R* to, const Rate<R>& rate, i64 k, const View& v) {
  const R* from = rate.data + k * rate.step_stride;
  if (rate.n > 1) return put_matrix<Team>(to, from, v);
  for (i64 c = 0; c < v.columns; ++c) to[c] = *from;
}

// What forward leaves for backward: what all tasks share, in shared layout, then what every team
// keeps.
template <class Plan>
struct Record {
  using Team = typename Plan::Team;
  using R = typename Team::Real;
  R *theta, *alpha, *kept;

  Record(const Plan& plan, R* p)
      : theta(p), alpha(p + plan.shared_size), kept(p + common_size(plan)) {}

  static i64 common_size(const Plan& plan) {
    return round_up((1 + plan.rate_steps) * plan.shared_size, Team::W);
  }
  static i64 team_size(const Plan& plan) {
    return plan.loop.steps * plan.theta_size + plan.kept_steps * plan.support_size +
           plan.query_size;
  }
  static i64 size(const Plan& plan) {
    return common_size(plan) + plan.teams() * team_size(plan);
  }
  Common<R> common() const { return {theta, alpha}; }

  void write_common(const Plan& plan) {
    std::memset(theta, 0, sizeof(R) * size_t(common_size(plan)));
    plan.each_view([&](const View& v) {
      const Parameter<R>& parameter = plan.loop.parameters[v.parameter];
      if (!parameter.task_stride) put_matrix<Team>(theta + v.shared_at, parameter.data, v);
      if (plan.has_rate(v.parameter))
        for (i64 k = 0; k < plan.rate_steps; ++k)
          put_rate<Team>(alpha + k * plan.shared_size + v.shared_at, plan.loop.rates[v.parameter],
                         k, v);
    });
  }
};

// n pieces of work over the threads: a thread a piece, and where the threads can share a piece, those
// that are left when the pieces run out of rounds are shared by all. Memory is taken before any thread
// starts: it follows the threads and not the tasks, and running out of it is the caller's exception.
template <class Plan>
class Workers {
  using R = typename Plan::Team::Real;

 public:
  // extra: scalars of scratch beyond the plan's
  Workers(const Plan& plan, i64 n, i64 extra)
      : threads_(plan.worker_size ? i64(plan.loop.threads) : smaller(plan.loop.threads, n)),
        alone_(plan.worker_size && threads_ > 1 ? n - n % threads_ : n),
        n_(n),
        team_size_(plan.scratch_size + extra),
        worker_size_(plan.worker_size),
        team_memory_(i64(sizeof(R)) * team_size_ * (alone_ ? smaller(threads_, n) : 1)),
        worker_memory_(i64(sizeof(R)) * worker_size_ * threads_) {}

  // f(scratch, crew, i)
  template <class F>
  void run(F f) const {
    const i64 bytes = i64(sizeof(R)) * worker_size_;
    char* memory = static_cast<char*>(worker_memory_.data());
    R* scratch = static_cast<R*>(team_memory_.data());
    parallel(alone_, threads_, [&](i64 worker, i64 i) {
      const FlushedDenormals flushed;
      f(scratch + worker * team_size_, Crew{1, memory + worker * bytes, bytes}, i);
    });
    const FlushedDenormals flushed;
    for (i64 i = alone_; i < n_; ++i) f(scratch, Crew{threads_, memory, bytes}, i);
  }

 private:
  i64 threads_, alone_, n_, team_size_, worker_size_;
  Memory team_memory_, worker_memory_;
};

// Adaptation: what one team does, forward and backward, by a plan of its own.
template <class Adaptation, class R>
void run_forward(const InnerLoop<R>& loop, const ForwardOut<R>& out) {
  using Plan = typename Adaptation::Plan;
  const Plan plan(loop);
  const Memory unkept(out.record ? 0 : i64(sizeof(R)) * Record<Plan>::common_size(plan));
  Record<Plan> record(plan, out.record ? out.record : static_cast<R*>(unkept.data()));
  record.write_common(plan);
  const Common<R> common = record.common();
  Workers<Plan>(plan, plan.teams(), 0).run([&](R* scratch, const Crew& crew, i64 team) {
    R* kept = out.record ? record.kept + team * Record<Plan>::team_size(plan) : nullptr;
    Adaptation(plan, common, scratch, crew).forward(team, out, kept);
  });
}

// Tasks are summed in runs whose number does not depend on the threads, then run by run.
// Where the i-th of `parts` nearly equal pieces of n begins.
inline i64 piece_begin(i64 n, i64 parts, i64 i) { return n * i / parts; }

template <class R>
i64 count_runs(i64 teams, i64 sums_size) {
  constexpr i64 most = 64, memory = (i64(64) << 20) / i64(sizeof(R));
  return larger(1, smaller(teams, smaller(most, memory / larger(1, sums_size))));
}

template <class R>
void add_runs(R* sums, i64 runs, i64 size, int threads) {
  constexpr i64 block = 4096;
  parallel(ceil_div(size, block), threads, [&](i64, i64 b) {
    const i64 begin = b * block, end = smaller(size, begin + block);
    for (i64 r = 1; r < runs; ++r)
      for (i64 i = begin; i < end; ++i) sums[i] += sums[r * size + i];
  });
}

template <class Plan, class R>
void put_sums(const Plan& plan, const R* sums, i64 steps, R* const* out, bool skip_per_task) {
  using Team = typename Plan::Team;
  plan.each_view([&](const View& v) {
    if (!out[v.parameter] || (skip_per_task && plan.per_task(v.parameter))) return;
    const i64 ld = Team::shared_stride(v.columns), elements = plan.elements(v.parameter);
    for (i64 k = 0; k < steps; ++k)
      copy_matrix(out[v.parameter] + k * elements + v.offset, v.row_step, v.column_step,
                  sums + k * plan.shared_size + v.shared_at, ld, i64(1), v.rows, v.columns);
  });
}

// f(adaptation, team, scratch of extra scalars, sums) for all teams, and what comes of the sums.
template <class Adaptation, class Plan, class R, class F>
void sum_over_teams(const Plan& plan, const Common<R>& common, const BackwardOut<R>& out, i64 extra,
                    F f) {
  const i64 size = plan.shared_size * (1 + (out.rates ? plan.rate_steps : 0));
  const i64 runs = count_runs<R>(plan.teams(), size);
  const i64 of_rates = out.rates ? plan.rate_steps * plan.theta_size : 0;
  const Memory sums(i64(sizeof(R)) * runs * size);
  Workers<Plan>(plan, runs, of_rates + extra).run([&](R* scratch, const Crew& crew, i64 run) {
    R* mine = static_cast<R*>(sums.data()) + run * size;
    std::memset(mine, 0, sizeof(R) * size_t(size));
    Adaptation adaptation(plan, common, scratch, crew);
    const i64 end = piece_begin(plan.teams(), runs, run + 1);
    for (i64 team = piece_begin(plan.teams(), runs, run); team < end; ++team)
      f(adaptation, team, scratch + plan.scratch_size + of_rates,
        Sums<R>{mine, mine + plan.shared_size});
  });
  R* total = static_cast<R*>(sums.data());
  add_runs(total, runs, size, plan.loop.threads);
  put_sums(plan, total, 1, out.parameters, true);
  if (out.rates) put_sums(plan, total + plan.shared_size, plan.rate_steps, out.rates, false);
}

template <class Adaptation, class R>
void run_backward(const InnerLoop<R>& loop, const BackwardIn<R>& in, const BackwardOut<R>& out) {
  using Plan = typename Adaptation::Plan;
  const Plan plan(loop);
  const Record<Plan> record(plan, const_cast<R*>(in.record));
  sum_over_teams<Adaptation>(
      plan, record.common(), out, 0, [&](auto& adaptation, i64 team, R*, const Sums<R>& sums) {
        adaptation.backward(team, in, record.kept + team * Record<Plan>::team_size(plan), out, sums);
      });
}

template <class Plan, class R>
void multiply_gradients(const Plan& plan, const BackwardOut<R>& gradients, R factor) {
  const int threads = plan.loop.threads;
  for (int p = 0; p < plan.loop.network.n_parameters; ++p) {
    const i64 n = plan.elements(p), all = plan.per_task(p) ? n * plan.loop.tasks : n;
    if (R* at = gradients.parameters[p]) multiply(at, all, factor, threads);
    if (gradients.rates && gradients.rates[p])
      multiply(gradients.rates[p], n * plan.rate_steps, factor, threads);
  }
}

// Forward, and the gradient of the sum of the tasks' losses times a factor, one team after the other: what
// a team keeps for its backward stays in the cache.
template <class Adaptation, class R>
void run_step(const InnerLoop<R>& loop, const ForwardOut<R>& out, const BackwardOut<R>& gradients,
              R factor) {
  using Plan = typename Adaptation::Plan;
  const Plan plan = Plan::keeping(loop);
  const Memory shared(i64(sizeof(R)) * Record<Plan>::common_size(plan));
  Record<Plan> record(plan, static_cast<R*>(shared.data()));
  record.write_common(plan);
  const Memory ones(i64(sizeof(R)) * loop.tasks);
  R* one = static_cast<R*>(ones.data());
  for (i64 t = 0; t < loop.tasks; ++t) one[t] = 1;
  const BackwardIn<R> in{nullptr, one, nullptr, nullptr};
  sum_over_teams<Adaptation>(
      plan, record.common(), gradients, Record<Plan>::team_size(plan),
      [&](auto& adaptation, i64 team, R* kept, const Sums<R>& sums) {
        adaptation.forward(team, out, kept);
        adaptation.backward(team, in, kept, gradients, sums);
      });
  if (factor != 1) multiply_gradients(plan, gradients, factor);
}

}  // namespace fastmeta::FASTMETA_ISA
