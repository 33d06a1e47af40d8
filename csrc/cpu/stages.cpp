// The entry points of networks of stages; see kernels.cpp.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <type_traits>
#include <utility>

#include "dispatch.h"
#include "runtime.h"

#include "crew.h"
#include "team.h"
//
#include "correlation_in_groups.h"
#include "correlation_in_tiles.h"
#include "product_finish.h"
#include "simd_math.h"
#include "loss_at_places.h"
#include "program_loss.h"
//
#include "../network/stage_passes.h"
//
#include "run.h"
#include "stages.h"

namespace fastmeta::FASTMETA_ISA {

namespace {

using Real = FASTMETA_REAL;
using Plan_ = StagePlan<Solo<Real>>;
using Stages = Adaptation<Plan_, StagePasses<Solo<Real>>>;

}  // namespace

i64 stage_record_size(const InnerLoop<Real>& loop) { return Record<Plan_>::size(Plan_(loop)); }

void stage_forward(const InnerLoop<Real>& loop, const ForwardOut<Real>& out) {
  run_forward<Stages>(loop, out);
}

void stage_backward(const InnerLoop<Real>& loop, const BackwardIn<Real>& in,
                    const BackwardOut<Real>& out) {
  run_backward<Stages>(loop, in, out);
}

void stage_step(const InnerLoop<Real>& loop, const ForwardOut<Real>& out,
                const BackwardOut<Real>& gradients, Real factor) {
  run_step<Stages>(loop, out, gradients, factor);
}

}  // namespace fastmeta::FASTMETA_ISA
