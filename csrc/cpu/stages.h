// What kernels.cpp puts into its table from the other files: networks of stages (stages.cpp), forwards as
// arithmetic on rows (written.cpp), these above those (headed.cpp), and convolutions, norms and pools by themselves (convolution.cpp,
// norm.cpp, max_pool.cpp).
#pragma once

#include "../network/spec.h"

namespace fastmeta::FASTMETA_ISA {

i64 stage_record_size(const InnerLoop<FASTMETA_REAL>&);
void stage_forward(const InnerLoop<FASTMETA_REAL>&, const ForwardOut<FASTMETA_REAL>&);
void stage_backward(const InnerLoop<FASTMETA_REAL>&, const BackwardIn<FASTMETA_REAL>&,
                    const BackwardOut<FASTMETA_REAL>&);
void stage_step(const InnerLoop<FASTMETA_REAL>&, const ForwardOut<FASTMETA_REAL>&,
                const BackwardOut<FASTMETA_REAL>&, FASTMETA_REAL factor);
i64 written_record_size(const InnerLoop<FASTMETA_REAL>&);
void written_forward(const InnerLoop<FASTMETA_REAL>&, const ForwardOut<FASTMETA_REAL>&);
void written_backward(const InnerLoop<FASTMETA_REAL>&, const BackwardIn<FASTMETA_REAL>&,
                      const BackwardOut<FASTMETA_REAL>&);
void written_step(const InnerLoop<FASTMETA_REAL>&, const ForwardOut<FASTMETA_REAL>&,
                  const BackwardOut<FASTMETA_REAL>&, FASTMETA_REAL factor);
const char* written_team(const InnerLoop<FASTMETA_REAL>&);
i64 headed_record_size(const InnerLoop<FASTMETA_REAL>&);
void headed_forward(const InnerLoop<FASTMETA_REAL>&, const ForwardOut<FASTMETA_REAL>&);
void headed_backward(const InnerLoop<FASTMETA_REAL>&, const BackwardIn<FASTMETA_REAL>&,
                     const BackwardOut<FASTMETA_REAL>&);
void headed_step(const InnerLoop<FASTMETA_REAL>&, const ForwardOut<FASTMETA_REAL>&,
                 const BackwardOut<FASTMETA_REAL>&, FASTMETA_REAL factor);
void convolve(const Convolution<FASTMETA_REAL>&);
void norm(const Norm<FASTMETA_REAL>&);
void max_pool(const MaxPool<FASTMETA_REAL>&);
void take_pixels(const Pixels<FASTMETA_REAL>&);

}  // namespace fastmeta::FASTMETA_ISA
