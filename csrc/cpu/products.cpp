// The products, compiled once for all that call them: their tiles are a third of all code.
#include <cstdint>
#include <cstring>

#include "dispatch.h"
#include "product_over_groups.h"
#include "product_tiles.h"

namespace fastmeta::FASTMETA_ISA {

using Real = FASTMETA_REAL;

#define FASTMETA_PRODUCTS(lane)                                                                      \
  template void product<lane>(const Term<Real>*, int, const Target<Real>&, i64, i64);                \
  template void product_at_once<lane>(const Term<Real>*, int, const Target<Real>&, i64, i64);

FASTMETA_PRODUCTS(Broadcast)
FASTMETA_PRODUCTS(Apart)
FASTMETA_PRODUCTS(Direct)
FASTMETA_PRODUCTS(Shared)
#if FASTMETA_VECTOR_BYTES > 16
FASTMETA_PRODUCTS(Spread)
template void product_over_groups(const Term<Real>*, int, const Target<Real>&, i64, i64);
#endif

}  // namespace fastmeta::FASTMETA_ISA
