// The threads that work for one team, and the scratch of each.
#pragma once

#include "runtime.h"
#include "simd.h"

namespace fastmeta::FASTMETA_ISA {

struct Crew {
  i64 threads;
  void* memory;
  i64 bytes;  // a worker

  // f(worker, i) for i in [0, n), in any order.
  template <class F>
  void each(i64 n, F f) const {
    const auto run = [&](i64 worker, i64 i) {
      const FlushedDenormals flushed;
      f(worker, i);
    };
    if (threads > 1 && n > 1) return parallel(n, threads, run);
    for (i64 i = 0; i < n; ++i) f(i64(0), i);
  }
  template <class R>
  R* scratch(i64 worker) const {
    return reinterpret_cast<R*>(static_cast<char*>(memory) + worker * bytes);
  }
};

}  // namespace fastmeta::FASTMETA_ISA
