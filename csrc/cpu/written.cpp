// The entry points of forwards that were written as arithmetic on rows; see kernels.cpp.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "dispatch.h"
#include "runtime.h"

#include "crew.h"
#include "team.h"
//
#include "simd_math.h"
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

// ---- the choice of the team, as in kernels.cpp ---------------------------------------------------

// Multiply-adds that a number in a task's row takes the time of: more where a team's rows of the task, all four
// of them, leave the nearest caches; docs/notes/cpu-kernels.md, "What a task has once".
template <class Plan>
i64 cost_of_task_number(const InnerLoop<Real>& loop) {
  constexpr i64 near = i64(1) << 17;
  return 4 * loop.network.written.task_size * Plan::Team::W * i64(sizeof(Real)) > near ? 32 : 1;
}

template <class Plan>
i64 products_of(const InnerLoop<Real>& loop) {
  constexpr i64 a_call = 650;
  const bool second = loop.order == 2;
  const i64 S = loop.steps * Plan::records(loop.support.n), Q = Plan::records(loop.query.n);
  const i64 passes = second ? 9 : 3, calls = passes * loop.steps + 3;
  const i64 a_product = Plan::lanes_are_samples ? Plan::records(loop.support.n) : 1;
  i64 work = 0;
  for (int i = 0; i < loop.network.written.n_rows; ++i) {
    const RowStep& s = loop.network.written.rows[i];
    const i64 times = s.of_task ? passes * loop.steps + 3 : passes * S + 3 * Q;
    const i64 in = loop.network.written.rows[s.a].width;
    if (s.op == RowOp::Product) {
      work += times * in * (s.width / i64(s.x * s.y));
    } else if (s.op == RowOp::Linear) {
      const i64 parts = i64(s.y);
      work += times * in * (s.width / parts);
      work += a_call * calls * (s.of_task ? 1 : a_product) * parts;
    } else if (s.of_task) {
      work += times * s.width * cost_of_task_number<Plan>(loop);
    }
  }
  return work;
}

i64 pack_bytes(const InnerLoop<Real>& loop) {
  i64 theta = 0;
  for (int i = 0; i < loop.network.written.n_rows; ++i) {
    const RowStep& s = loop.network.written.rows[i];
    if (s.op != RowOp::Linear) continue;
    const i64 parts = i64(s.y);
    theta += (loop.network.written.rows[s.a].width / parts + 1) * (s.width / parts);
  }
  return (loop.steps + 3) * theta * Pack<Real>::W * i64(sizeof(Real));
}

// A multiply-add of a pack takes 4/3 of the time, of 16 lanes outside the second-level cache 8/5, and far
// outside twice that: docs/notes/cpu-kernels.md, "Forwards as arithmetic".
i64 pack_work(const InnerLoop<Real>& loop) {
  constexpr i64 near = i64(1) << 20, far = i64(16) << 20;
  const i64 products = products_of<PackPlan>(loop), bytes = pack_bytes(loop);
  if (bytes > far) return products * 16 / 5;
  return FASTMETA_VECTOR_BYTES == 64 && bytes > near ? products * 8 / 5 : products * 4 / 3;
}

bool packs(const InnerLoop<Real>& loop) {
  const i64 n = processors();
  const i64 rounds_pack = ceil_div(ceil_div(loop.tasks, Pack<Real>::tasks), n);
  return rounds_pack * pack_work(loop) < ceil_div(loop.tasks, n) * products_of<SoloPlan>(loop);
}

}  // namespace

i64 written_record_size(const InnerLoop<Real>& loop) {
  return packs(loop) ? Record<PackPlan>::size(PackPlan(loop))
                     : Record<SoloPlan>::size(SoloPlan(loop));
}

void written_forward(const InnerLoop<Real>& loop, const ForwardOut<Real>& out) {
  return packs(loop) ? run_forward<OfTasks>(loop, out)
                     : run_forward<OfSamples>(loop, out);
}

void written_backward(const InnerLoop<Real>& loop, const BackwardIn<Real>& in,
                      const BackwardOut<Real>& out) {
  return packs(loop) ? run_backward<OfTasks>(loop, in, out)
                     : run_backward<OfSamples>(loop, in, out);
}

void written_step(const InnerLoop<Real>& loop, const ForwardOut<Real>& out,
                  const BackwardOut<Real>& gradients, Real factor) {
  return packs(loop) ? run_step<OfTasks>(loop, out, gradients, factor)
                     : run_step<OfSamples>(loop, out, gradients, factor);
}

const char* written_team(const InnerLoop<Real>& loop) {
  return packs(loop) ? "rows of tasks" : "rows of samples";
}

}  // namespace fastmeta::FASTMETA_ISA
