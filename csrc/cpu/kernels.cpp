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
//
#include "../network/passes.h"
//
#include "run.h"
#include "stages.h"

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

// ---- the entry points ----------------------------------------------------------------------------

using PackPlan = Plan<Pack<Real>>;
using SoloPlan = Plan<Solo<Real>>;
using PackPasses = Passes<Pack<Real>>;
using SoloPasses = Passes<Solo<Real>>;

i64 record_size(const InnerLoop<Real>& loop) {
  if (loop.network.n_stages) return stage_record_size(loop);
  return packs(loop) ? Record<PackPlan>::size(PackPlan(loop))
                     : Record<SoloPlan>::size(SoloPlan(loop));
}

void forward(const InnerLoop<Real>& loop, const ForwardOut<Real>& out) {
  if (loop.network.n_stages) return stage_forward(loop, out);
  return packs(loop) ? run_forward<PackPlan, PackPasses>(loop, out)
                     : run_forward<SoloPlan, SoloPasses>(loop, out);
}

void backward(const InnerLoop<Real>& loop, const BackwardIn<Real>& in,
              const BackwardOut<Real>& out) {
  if (loop.network.n_stages) return stage_backward(loop, in, out);
  return packs(loop) ? run_backward<PackPlan, PackPasses>(loop, in, out)
                     : run_backward<SoloPlan, SoloPasses>(loop, in, out);
}

void step(const InnerLoop<Real>& loop, const ForwardOut<Real>& out,
          const BackwardOut<Real>& gradients) {
  if (loop.network.n_stages) return stage_step(loop, out, gradients);
  return packs(loop) ? run_step<PackPlan, PackPasses>(loop, out, gradients)
                     : run_step<SoloPlan, SoloPasses>(loop, out, gradients);
}

const char* team(const InnerLoop<Real>& loop) {
  if (loop.network.n_stages) return "stages";
  return packs(loop) ? Pack<Real>::name : Solo<Real>::name;
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
