// The entry points of forwards that were written as arithmetic on rows; see kernels.cpp.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "dispatch.h"
#include "runtime.h"

#include "crew.h"
#include "team.h"
#include "blend.h"
//
#include "simd_math.h"
#include "loss_at_places.h"
#include "program_loss.h"
//
#include "../network/row_passes.h"
//
#include "run.h"
#include "stages.h"

namespace fastmeta::FASTMETA_ISA {

namespace {

using Real = FASTMETA_REAL;
using PackPlan = RowPlan<Pack<Real>>;
using SoloPlan = RowPlan<Solo<Real>>;
using OfTasks = Adaptation<PackPlan, RowPasses<Pack<Real>>>;
using OfSamples = Adaptation<SoloPlan, RowPasses<Solo<Real>>>;
#if FASTMETA_VECTOR_BYTES > 16  // of fewer lanes it would be a pack
using BlendPlan = RowPlan<Blend<Real>>;
using OfBoth = Adaptation<BlendPlan, RowPasses<Blend<Real>>>;
const char* name_of(const OfBoth*) { return "rows of samples and tasks"; }
#endif
const char* name_of(const OfTasks*) { return "rows of tasks"; }
const char* name_of(const OfSamples*) { return "rows of samples"; }
template <class Pointer>
using AdaptationOf = std::remove_pointer_t<Pointer>;
template <class Pointer>
using PlanOf = typename AdaptationOf<Pointer>::Plan;

// ---- the choice of the team, as in kernels.cpp ---------------------------------------------------

// In multiply-adds of vectors, those of samples alone: docs/notes/cpu-kernels.md, "Three teams".
struct Work {
  i64 products, numbers;
};

// What a number in a task's row takes: more where a team's rows of the task, all four of them, leave the nearest
// caches; "What a task has once".
template <class Plan>
i64 cost_of_task_number(const InnerLoop<Real>& loop) {
  constexpr i64 near = i64(1) << 17;
  return 4 * loop.network.written.task_size * Plan::Team::W * i64(sizeof(Real)) > near ? 32 : 1;
}

template <class Plan>
Work count_work(const InnerLoop<Real>& loop) {
  constexpr i64 a_call = 400, an_end = 2, a_number = 3;  // an end: of a vector of a weight's gradient
  const bool second = loop.order == 2;
  const i64 S = loop.steps * Plan::records(loop.support.n), Q = Plan::records(loop.query.n);
  const i64 most = Plan::most_of_chunk(loop.network.written);
  const i64 again = loop.support.n > most ? (second ? 2 : 1) : 0;  // forwards of chunks
  const i64 passes = (second ? 9 : 3) + again, calls = passes * loop.steps + 3;
  const i64 ends = (second ? 3 : 1) * loop.steps + 2;
  const i64 a_product = Plan::lanes_are_samples ? Plan::records(loop.support.n) : 1;
  Work work{0, 0};
  for (int i = 0; i < loop.network.written.n_rows; ++i) {
    const RowStep& s = loop.network.written.rows[i];
    const i64 times = s.of_task ? calls : passes * S + 3 * Q;
    const i64 in = loop.network.written.rows[s.a].width;
    if (s.op == RowOp::Product) {
      work.products += times * in * (s.width / i64(s.x * s.y));
    } else if (s.op == RowOp::Linear) {
      const i64 parts = i64(s.y);
      work.products += times * in * (s.width / parts);
      work.products += a_call * calls * (s.of_task ? 1 : a_product) * parts;
      work.products += an_end * ends * (in / parts) * Plan::Team::vectors(s.width / parts);
    } else {
      work.numbers += times * s.width * (s.of_task ? cost_of_task_number<Plan>(loop) : a_number);
    }
  }
  return work;
}

// theta_0 .. theta_K of a team, lambda and a matrix beside it.
template <class Team>
i64 theta_bytes(const InnerLoop<Real>& loop) {
  i64 theta = 0;
  bool seen[Team::max_pieces] = {};  // a cell over time reads one weight again and again
  for (int i = 0; i < loop.network.written.n_rows; ++i) {
    const RowStep& s = loop.network.written.rows[i];
    if (s.op != RowOp::Linear || seen[s.b]) continue;
    seen[s.b] = true;
    const i64 parts = i64(s.y);
    theta += (loop.network.written.rows[s.a].width / parts + 1) * (s.width / parts);
  }
  return (loop.steps + 3) * theta * Team::tasks * i64(sizeof(Real));
}

// A multiply-add of a blend takes 4/3 of the time, of a pack as well, but of 16 lanes 5/3; twice that where the
// parameters are far outside the second-level cache.
template <class Plan>
i64 work_of(const InnerLoop<Real>& loop) {
  constexpr i64 far = i64(11) << 20;
  const Work work = count_work<Plan>(loop);
  if (Plan::lanes_are_samples) return work.products + work.numbers;
  const bool wide = FASTMETA_VECTOR_BYTES == 64 && samples_a_row<typename Plan::Team> == 1;
  const i64 products = work.products * (wide ? 5 : 4) / 3;
  return work.numbers + (theta_bytes<typename Plan::Team>(loop) > far ? 2 * products : products);
}
// In rounds of as many teams as there are processors.
template <class Plan>
i64 time_of(const InnerLoop<Real>& loop) {
  return ceil_div(ceil_div(loop.tasks, Plan::Team::tasks), processors()) * work_of<Plan>(loop);
}

// f(Adaptation) of the team that takes the least time.
template <class F>
auto with_team(const InnerLoop<Real>& loop, F f) {
  const i64 packed = time_of<PackPlan>(loop), alone = time_of<SoloPlan>(loop);
#if FASTMETA_VECTOR_BYTES > 16
  if (time_of<BlendPlan>(loop) < smaller(packed, alone)) return f(static_cast<OfBoth*>(nullptr));
#endif
  if (packed < alone) return f(static_cast<OfTasks*>(nullptr));
  return f(static_cast<OfSamples*>(nullptr));
}

}  // namespace

i64 written_record_size(const InnerLoop<Real>& loop) {
  return with_team(loop, [&](auto* of) {
    using Plan = PlanOf<decltype(of)>;
    return Record<Plan>::size(Plan(loop));
  });
}

void written_forward(const InnerLoop<Real>& loop, const ForwardOut<Real>& out) {
  with_team(loop, [&](auto* of) { run_forward<AdaptationOf<decltype(of)>>(loop, out); });
}

void written_backward(const InnerLoop<Real>& loop, const BackwardIn<Real>& in,
                      const BackwardOut<Real>& out) {
  with_team(loop, [&](auto* of) { run_backward<AdaptationOf<decltype(of)>>(loop, in, out); });
}

void written_step(const InnerLoop<Real>& loop, const ForwardOut<Real>& out,
                  const BackwardOut<Real>& gradients, Real factor) {
  with_team(loop, [&](auto* of) { run_step<AdaptationOf<decltype(of)>>(loop, out, gradients, factor); });
}

const char* written_team(const InnerLoop<Real>& loop) {
  return with_team(loop, [&](auto* of) { return name_of(of); });
}

}  // namespace fastmeta::FASTMETA_ISA
