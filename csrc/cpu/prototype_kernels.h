// What prototypes.cpp puts into its table from the other files.
#pragma once

#include "prototypes.h"

namespace fastmeta::FASTMETA_ISA {

i64 prototype_record_size(const PrototypeLoss<FASTMETA_REAL>&);
bool prototype_loss(const PrototypeLoss<FASTMETA_REAL>&, const PrototypeResult<FASTMETA_REAL>&,
                    FASTMETA_REAL* record, bool differentiable,
                    const PrototypeGradients<FASTMETA_REAL>* at_once);
bool prototype_loss_backward(const PrototypeLoss<FASTMETA_REAL>&, const FASTMETA_REAL* record,
                             const PrototypeGradients<FASTMETA_REAL>&);
void nearest(const Nearest<FASTMETA_REAL>&);

}  // namespace fastmeta::FASTMETA_ISA
