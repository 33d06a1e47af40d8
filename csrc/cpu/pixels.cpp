// A batch of images out of a store of bytes, scaled, in one pass over the bytes.
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "dispatch.h"
#include "runtime.h"

#include "simd.h"
#include "stages.h"

// Two roundings, as in PyTorch: the same pixels whether or not there are kernels.
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#define FASTMETA_NO_FMA
#else
#define FASTMETA_NO_FMA __attribute__((optimize("fp-contract=off")))
#endif

namespace fastmeta::FASTMETA_ISA {

namespace {

using Real = FASTMETA_REAL;

FASTMETA_NO_FMA void scale(Real* __restrict out, const std::uint8_t* __restrict in, i64 n,
                           Real factor, Real shift) {
  if (shift == 0)
    for (i64 i = 0; i < n; ++i) out[i] = Real(in[i]) * factor;
  else
    for (i64 i = 0; i < n; ++i) out[i] = Real(in[i]) * factor + shift;
}

// Images lie anywhere in the store, so the next one is asked for while this one is scaled.
void fetch(const std::uint8_t* image, i64 bytes) {
  constexpr i64 line = 64, most = i64(4) << 10;
  for (i64 i = 0; i < smaller(bytes, most); i += line) __builtin_prefetch(image + i);
}

}  // namespace

void take_pixels(const Pixels<Real>& p) {
  // A thread is woken for no less than 64 KiB of bytes: a few microseconds of work.
  const i64 image = p.channels * p.area, block = ceil_div(i64(64) << 10, image);
  parallel(ceil_div(p.n, block), p.threads, [&](i64, i64 b) {
    const i64 end = smaller(p.n, (b + 1) * block);
    for (i64 i = b * block; i < end; ++i) {
      if (i + 1 < end) fetch(p.images + p.rows[i + 1] * image, image);
      for (i64 c = 0; c < p.channels; ++c)
        scale(p.out + i * image + c * p.area, p.images + p.rows[i] * image + c * p.area, p.area,
              p.factor[c], p.shift[c]);
    }
  });
}

}  // namespace fastmeta::FASTMETA_ISA
