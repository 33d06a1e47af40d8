// The entry points of one build: FASTMETA_ISA names the instruction set, FASTMETA_REAL the real type.
// Nothing of the standard library that is not inlined may be used here: the linker would keep one
// copy for all builds, and it might be the one for instructions this machine lacks.
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "dispatch.h"
#include "runtime.h"

#include "crew.h"
#include "team.h"
//
#include "simd_math.h"
#include "loss_at_places.h"
#include "program_loss.h"
//
#include "../network/passes.h"
//
#include "low_rank_step.h"
#include "run.h"
#include "stages.h"

namespace fastmeta::FASTMETA_ISA {

namespace {

using Real = FASTMETA_REAL;

// ---- the choice of the team ----------------------------------------------------------------------

// What a team costs, in multiply-adds of vectors. It depends on shapes and on the machine, never on the
// number of threads, so that the number of threads never changes a result. The constants are of
// docs/notes/cpu-kernels.md, "Which team".
template <class Team>
i64 products_of(const InnerLoop<Real>& loop, bool dual) {
  constexpr i64 a_call = 650;  // around each product
  const bool second = loop.order == 2;
  const i64 S = loop.steps * loop.support.n, Q = loop.query.n;
  const i64 rows = (second ? 9 : 3) * S + 3 * Q, first_rows = (second ? 4 : 2) * S + 2 * Q;
  const i64 calls = (second ? 9 : 3) * loop.steps + 3;
  i64 work = 0;
  for (int l = 0; l < loop.network.n_nodes; ++l) {
    const Node& node = loop.network.nodes[l];
    if (node.kind != NodeKind::Linear) continue;
    const bool along = runs_along_inputs<Team>(node) && !(dual && l == 0);
    const i64 size = along ? Team::vectors(node.in) * node.out : node.in * Team::vectors(node.out);
    work += (l ? rows : first_rows) * size + a_call * calls;
  }
  return work;
}

i64 solo_work(const InnerLoop<Real>& loop) {
  const bool dual = takes_dual_form<Solo<Real>>(loop);
  const i64 work = products_of<Solo<Real>>(loop, dual);
  if (!dual) return work;
  const InputWork<Solo<Real>> input(loop);
  return work - (input.plain - input.dual) / Solo<Real>::W;
}

// theta_0 .. theta_K of a pack, lambda and a matrix beside it.
i64 pack_bytes(const InnerLoop<Real>& loop) {
  i64 theta = 0;
  for (int l = 0; l < loop.network.n_nodes; ++l) {
    const Node& node = loop.network.nodes[l];
    if (node.kind == NodeKind::Linear) theta += (node.in + 1) * node.out;
  }
  return (loop.steps + 3) * theta * Pack<Real>::W * i64(sizeof(Real));
}

// A multiply-add of a pack takes 4/3 of the time: both operands are loaded, from further away. Of 16 lanes,
// where the second-level cache does not hold them, it takes 8/5. To turn samples into lanes takes as long
// as six a vector, and is done twice.
i64 pack_work(const InnerLoop<Real>& loop) {
  constexpr i64 cache = i64(1) << 20;
  const bool far = FASTMETA_VECTOR_BYTES == 64 && pack_bytes(loop) > cache;
  const i64 taken = 2 * (loop.support.n + loop.query.n) * loop.network.nodes[0].in;
  const i64 products = products_of<Pack<Real>>(loop, false);
  return (far ? products * 8 / 5 : products * 4 / 3) + 6 * taken;
}

bool packs(const InnerLoop<Real>& loop) {
  const i64 n = processors();
  const i64 rounds_pack = ceil_div(ceil_div(loop.tasks, Pack<Real>::tasks), n);
  return rounds_pack * pack_work(loop) < ceil_div(loop.tasks, n) * solo_work(loop);
}

// ---- the entry points ----------------------------------------------------------------------------

template <class T>
struct Kind {
  using Adaptation = T;
};

// f(kind of adaptation) of a chain.
template <class F>
auto with_adaptation(const InnerLoop<Real>& loop, F f) {
  if (!packs(loop)) return f(Kind<Adaptation<Plan<Solo<Real>>, Passes<Solo<Real>>>>{});
  if (LowRankPlan<Real>::pays(loop)) return f(Kind<LowRankStep<Real>>{});
  return f(Kind<Adaptation<Plan<Pack<Real>>, Passes<Pack<Real>>>>{});
}

bool is_headed(const InnerLoop<Real>& loop) { return loop.network.n_stages && loop.network.written.n_rows; }

i64 record_size(const InnerLoop<Real>& loop) {
  if (is_headed(loop)) return headed_record_size(loop);
  if (loop.network.n_stages) return stage_record_size(loop);
  if (loop.network.written.n_rows) return written_record_size(loop);
  return with_adaptation(loop, [&](auto kind) {
    using Plan = typename decltype(kind)::Adaptation::Plan;
    return Record<Plan>::size(Plan(loop));
  });
}

void forward(const InnerLoop<Real>& loop, const ForwardOut<Real>& out) {
  if (is_headed(loop)) return headed_forward(loop, out);
  if (loop.network.n_stages) return stage_forward(loop, out);
  if (loop.network.written.n_rows) return written_forward(loop, out);
  with_adaptation(loop, [&](auto kind) {
    run_forward<typename decltype(kind)::Adaptation>(loop, out);
  });
}

void backward(const InnerLoop<Real>& loop, const BackwardIn<Real>& in,
              const BackwardOut<Real>& out) {
  if (is_headed(loop)) return headed_backward(loop, in, out);
  if (loop.network.n_stages) return stage_backward(loop, in, out);
  if (loop.network.written.n_rows) return written_backward(loop, in, out);
  with_adaptation(loop, [&](auto kind) {
    run_backward<typename decltype(kind)::Adaptation>(loop, in, out);
  });
}

void step(const InnerLoop<Real>& loop, const ForwardOut<Real>& out,
          const BackwardOut<Real>& gradients, Real factor) {
  if (is_headed(loop)) return headed_step(loop, out, gradients, factor);
  if (loop.network.n_stages) return stage_step(loop, out, gradients, factor);
  if (loop.network.written.n_rows) return written_step(loop, out, gradients, factor);
  with_adaptation(loop, [&](auto kind) {
    run_step<typename decltype(kind)::Adaptation>(loop, out, gradients, factor);
  });
}

const char* team(const InnerLoop<Real>& loop) {
  if (is_headed(loop)) return "stages below rows of samples";
  if (loop.network.n_stages) return "stages";
  if (loop.network.written.n_rows) return written_team(loop);
  if (!packs(loop)) return Plan<Solo<Real>>(loop).dual_size ? "dual" : Solo<Real>::name;
  return LowRankPlan<Real>::pays(loop) ? "low rank" : Pack<Real>::name;
}

}  // namespace

#define FASTMETA_JOIN_(a, b) a##b
#define FASTMETA_JOIN(a, b) FASTMETA_JOIN_(a, b)
extern const PrototypeKernels<Real> FASTMETA_JOIN(prototype_kernels_, FASTMETA_REAL);
extern const Kernels<Real> FASTMETA_JOIN(kernels_, FASTMETA_REAL);
const Kernels<Real> FASTMETA_JOIN(kernels_, FASTMETA_REAL) = {
    record_size, forward, backward, step,        team,
    convolve,    norm,    max_pool, take_pixels, &FASTMETA_JOIN(prototype_kernels_, FASTMETA_REAL)};

}  // namespace fastmeta::FASTMETA_ISA
