// The steps of row_machine.h, of either kind of number: compiled once for losses and forwards.
#include <cmath>
#include <cstdint>
#include <cstring>

#include "dispatch.h"
#include "row_machine.h"
#include "simd_math.h"
//
#include "../network/row_steps.h"

namespace fastmeta::FASTMETA_ISA {

namespace {

template <class Numbers>
RowSteps<Numbers> steps(const RowMachine<Numbers>& of) {
  return {of.program, of.wanted, of.rows, of.adjoints, of.task_rows, of.task_adjoints};
}

}  // namespace

template <class Numbers>
void RowMachine<Numbers>::forward(int i) const {
  steps(*this).forward(i);
}
template <class Numbers>
void RowMachine<Numbers>::backward(int i) const {
  steps(*this).backward(i);
}

template struct RowMachine<PlainNumbers<FASTMETA_REAL>>;
template struct RowMachine<DualNumbers<FASTMETA_REAL>>;
template void RowMachine<SlopeNumbers<FASTMETA_REAL>>::forward(int) const;

}  // namespace fastmeta::FASTMETA_ISA
