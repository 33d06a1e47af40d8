// The kernels of networks of stages (stages.cpp), as those of chains (kernels.cpp) see them.
#pragma once

#include "../network/spec.h"

namespace fastmeta::FASTMETA_ISA {

i64 stage_record_size(const InnerLoop<FASTMETA_REAL>&);
void stage_forward(const InnerLoop<FASTMETA_REAL>&, const ForwardOut<FASTMETA_REAL>&);
void stage_backward(const InnerLoop<FASTMETA_REAL>&, const BackwardIn<FASTMETA_REAL>&,
                    const BackwardOut<FASTMETA_REAL>&);

}  // namespace fastmeta::FASTMETA_ISA
