// The entry points of one build: FASTMETA_ISA names the instruction set, FASTMETA_REAL the real type.
// Nothing of the standard library that is not inlined may be used here: the linker would keep one
// copy for all builds, and it might be the one for instructions this machine lacks.
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "dispatch.h"
#include "runtime.h"

#include "team.h"
//
#include "simd_math.h"
//
#include "../network/inner_loop.h"

namespace fastmeta::FASTMETA_ISA {

namespace {

using Real = FASTMETA_REAL;

// ---- the choice of the team ----------------------------------------------------------------------

// Vector multiply-adds of one team for one sample. It depends on shapes and on the machine, never on
// the number of threads, so that the number of threads never changes a result.
template <class Team>
i64 work_per_sample(const InnerLoop<Real>& loop) {
  i64 work = 0;
  for (int l = 0; l < loop.network.n_nodes; ++l) {
    const Node& node = loop.network.nodes[l];
    if (node.kind == NodeKind::Linear) work += node.in * Team::vectors(node.out);
  }
  return work;
}

// Does a team's theta, with lambda and the direction, fit a second-level cache of 1 MiB?
template <class Team>
bool fits_cache(const InnerLoop<Real>& loop) {
  i64 theta = 0;
  for (int l = 0; l < loop.network.n_nodes; ++l) {
    const Node& node = loop.network.nodes[l];
    if (node.kind == NodeKind::Linear) theta += (node.in + 1) * Team::stride(node.out);
  }
  return 3 * theta * i64(sizeof(Real)) <= i64(1) << 20;
}

bool packs(const InnerLoop<Real>& loop) {
  const i64 n = processors();
  const i64 rounds_pack = ceil_div(ceil_div(loop.tasks, Pack<Real>::tasks), n);
  const i64 rounds_solo = ceil_div(loop.tasks, n);
  // 256-64-64-1 with 16 tasks a pack, far out of the cache: a multiply-add took 1.2 times as long.
  const i64 price = fits_cache<Pack<Real>>(loop) ? 4 : 5;
  return price * rounds_pack * work_per_sample<Pack<Real>>(loop) <
         4 * rounds_solo * work_per_sample<Solo<Real>>(loop);
}

// ---- one call ------------------------------------------------------------------------------------

// PyTorch keeps a weight [O, I], the kernels [I][O].
template <class Team>
void put_matrix(Real* to, const Real* from, i64 rows, i64 columns) {
  const i64 ld = Team::shared_stride(columns);
  for (i64 c = 0; c < columns; ++c)
    for (i64 r = 0; r < rows; ++r) to[r * ld + c] = from[c * rows + r];
}

template <class Team>
void put_rate(Real* to, const Rate<Real>& rate, i64 k, i64 rows, i64 columns) {
  const Real* from = rate.data + k * rate.step_stride;
  if (rate.n > 1) return put_matrix<Team>(to, from, rows, columns);
  const i64 n = (rows - 1) * Team::shared_stride(columns) + columns;
  for (i64 i = 0; i < n; ++i) to[i] = *from;
}

// f(parameter index, offset in shared layout, rows, columns)
template <class Team, class F>
void each_parameter(const Plan<Team>& plan, F f) {
  for (int l = 0; l < plan.n_nodes; ++l) {
    if (!plan.linear(l)) continue;
    const i64 I = plan.in(l), O = plan.out(l), at = plan.shared_at[l];
    f(plan.node(l).weight, at, I, O);
    if (plan.node(l).bias >= 0) f(plan.node(l).bias, at + I * Team::shared_stride(O), i64(1), O);
  }
}

// What forward leaves for backward: what all tasks share, in shared layout, then theta_1..theta_K of
// every team.
template <class Team>
struct Record {
  Real *theta, *alpha, *checkpoints;

  Record(const Plan<Team>& plan, Real* p)
      : theta(p), alpha(p + plan.shared_size), checkpoints(p + common_size(plan)) {}

  static i64 common_size(const Plan<Team>& plan) {
    return round_up((1 + plan.rate_steps) * plan.shared_size, Team::W);
  }
  static i64 size(const Plan<Team>& plan) {
    return common_size(plan) + plan.teams() * plan.loop.steps * plan.theta_size;
  }
  Common<Real> common() const { return {theta, alpha}; }

  void write_common(const Plan<Team>& plan) {
    std::memset(theta, 0, sizeof(Real) * size_t(common_size(plan)));
    each_parameter(plan, [&](int p, i64 at, i64 rows, i64 columns) {
      const Parameter<Real>& parameter = plan.loop.parameters[p];
      if (!parameter.task_stride) put_matrix<Team>(theta + at, parameter.data, rows, columns);
      if (plan.has_rate(p))
        for (i64 k = 0; k < plan.rate_steps; ++k)
          put_rate<Team>(alpha + k * plan.shared_size + at, plan.loop.rates[p], k, rows, columns);
    });
  }
};

// One block for all workers, taken before any of them starts: memory follows the workers and not the
// tasks, and running out of it is the caller's exception.
template <class Team>
class Scratch {
 public:
  Scratch(const Plan<Team>& plan, i64 workers, bool with_rates)
      : size_(plan.scratch_size + (with_rates ? plan.rate_steps * plan.theta_size : 0)),
        memory_(i64(sizeof(Real)) * size_ * workers) {}
  Real* of(i64 worker) const { return static_cast<Real*>(memory_.data()) + worker * size_; }

 private:
  i64 size_;
  Memory memory_;
};

template <class Team>
void run_forward(const InnerLoop<Real>& loop, const ForwardOut<Real>& out) {
  const Plan<Team> plan(loop);
  const Memory unkept(out.record ? 0 : i64(sizeof(Real)) * Record<Team>::common_size(plan));
  Record<Team> record(plan, out.record ? out.record : static_cast<Real*>(unkept.data()));
  record.write_common(plan);
  const Common<Real> common = record.common();
  Real* checkpoints = out.record ? record.checkpoints : nullptr;
  const i64 workers = smaller(loop.threads, plan.teams());
  const Scratch<Team> scratch(plan, workers, false);
  parallel(plan.teams(), workers, [&](i64 worker, i64 team) {
    Adaptation<Team>(plan, common, scratch.of(worker)).forward(team, out, checkpoints);
  });
}

// Tasks are summed in runs whose number does not depend on the threads, then run by run.
// Where the i-th of `parts` nearly equal pieces of n begins.
i64 piece_begin(i64 n, i64 parts, i64 i) { return n * i / parts; }

i64 count_runs(i64 teams, i64 sums_size) {
  constexpr i64 most = 64, memory = (i64(64) << 20) / i64(sizeof(Real));
  return larger(1, smaller(teams, smaller(most, memory / larger(1, sums_size))));
}

void add_runs(Real* sums, i64 runs, i64 size, int threads) {
  constexpr i64 block = 4096;
  parallel(ceil_div(size, block), threads, [&](i64, i64 b) {
    const i64 begin = b * block, end = smaller(size, begin + block);
    for (i64 r = 1; r < runs; ++r)
      for (i64 i = begin; i < end; ++i) sums[i] += sums[r * size + i];
  });
}

template <class Team>
void put_sums(const Plan<Team>& plan, const Real* sums, i64 steps, Real* const* out,
              bool skip_per_task) {
  each_parameter(plan, [&](int p, i64 at, i64 rows, i64 columns) {
    if (!out[p] || (skip_per_task && plan.loop.parameters[p].task_stride)) return;
    const i64 ld = Team::shared_stride(columns);
    for (i64 k = 0; k < steps; ++k)
      for (i64 c = 0; c < columns; ++c)
        for (i64 r = 0; r < rows; ++r)
          out[p][(k * columns + c) * rows + r] = sums[k * plan.shared_size + at + r * ld + c];
  });
}

template <class Team>
void run_backward(const InnerLoop<Real>& loop, const BackwardIn<Real>& in,
                  const BackwardOut<Real>& out) {
  const Plan<Team> plan(loop);
  const Record<Team> record(plan, const_cast<Real*>(in.record));
  const Common<Real> common = record.common();

  const i64 size = plan.shared_size * (1 + (out.rates ? plan.rate_steps : 0));
  const i64 runs = count_runs(plan.teams(), size);
  const Memory sums(i64(sizeof(Real)) * runs * size);
  const i64 workers = smaller(loop.threads, runs);
  const Scratch<Team> scratch(plan, workers, out.rates != nullptr);
  parallel(runs, workers, [&](i64 worker, i64 run) {
    Real* mine = static_cast<Real*>(sums.data()) + run * size;
    std::memset(mine, 0, sizeof(Real) * size_t(size));
    Adaptation<Team> adaptation(plan, common, scratch.of(worker));
    const i64 end = piece_begin(plan.teams(), runs, run + 1);
    for (i64 team = piece_begin(plan.teams(), runs, run); team < end; ++team)
      adaptation.backward(team, in, record.checkpoints, out, {mine, mine + plan.shared_size});
  });
  Real* total = static_cast<Real*>(sums.data());
  add_runs(total, runs, size, loop.threads);
  put_sums(plan, total, 1, out.parameters, true);
  if (out.rates) put_sums(plan, total + plan.shared_size, plan.rate_steps, out.rates, false);
}

i64 record_size(const InnerLoop<Real>& loop) {
  return packs(loop) ? Record<Pack<Real>>::size(Plan<Pack<Real>>(loop))
                     : Record<Solo<Real>>::size(Plan<Solo<Real>>(loop));
}

void forward(const InnerLoop<Real>& loop, const ForwardOut<Real>& out) {
  return packs(loop) ? run_forward<Pack<Real>>(loop, out) : run_forward<Solo<Real>>(loop, out);
}

void backward(const InnerLoop<Real>& loop, const BackwardIn<Real>& in,
              const BackwardOut<Real>& out) {
  return packs(loop) ? run_backward<Pack<Real>>(loop, in, out)
                     : run_backward<Solo<Real>>(loop, in, out);
}

const char* team(const InnerLoop<Real>& loop) {
  return packs(loop) ? Pack<Real>::name : Solo<Real>::name;
}

}  // namespace

#define FASTMETA_JOIN_(a, b) a##b
#define FASTMETA_JOIN(a, b) FASTMETA_JOIN_(a, b)
extern const Kernels<Real> FASTMETA_JOIN(kernels_, FASTMETA_REAL);
const Kernels<Real> FASTMETA_JOIN(kernels_, FASTMETA_REAL) = {record_size, forward, backward,
                                                             team};

}  // namespace fastmeta::FASTMETA_ISA
