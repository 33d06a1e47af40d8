// What the kernels of every instruction set share: threads and memory. Compiled once, in dispatch.cpp.
#pragma once

#include "../network/spec.h"

namespace fastmeta {

// Calls body(context, worker, i) for i in [0, n), in any order, on `workers` of the threads of the
// OpenMP runtime that PyTorch has loaded; without one, the caller's thread does it all. worker is
// in [0, workers) and tells who runs: scratch belongs to a worker. The body must not throw.
void parallel_for(i64 n, i64 workers, void (*body)(void*, i64, i64), void* context);

template <class F>
void parallel(i64 n, i64 workers, F f) {
  parallel_for(
      n, workers, [](void* context, i64 w, i64 i) { (*static_cast<F*>(context))(w, i); }, &f);
}

// n numbers times a factor, in place.
template <class R>
void multiply(R* at, i64 n, R factor, int threads) {
  constexpr i64 block = 1 << 14;
  parallel((n + block - 1) / block, threads, [&](i64, i64 b) {
    const i64 end = (b + 1) * block < n ? (b + 1) * block : n;
    for (i64 i = b * block; i < end; ++i) at[i] *= factor;
  });
}

// While it lives, numbers below the smallest normal one are 0 in the thread that made it. Gradients through a
// long recurrence end there, where each operation takes some hundred times as long.
class FlushedDenormals {
 public:
  FlushedDenormals();
  ~FlushedDenormals();
  FlushedDenormals(const FlushedDenormals&) = delete;
  FlushedDenormals& operator=(const FlushedDenormals&) = delete;

 private:
  unsigned long long before_;
};

const char* thread_runtime();  // its name, for `fastmeta doctor`
int processors();              // of this machine, whatever number of threads is asked for

// Memory that is kept for the next call: fresh pages cost more than the arithmetic of a small
// meta-step. Aligned to 64 bytes, contents undefined. Throws std::bad_alloc.
class Memory {
 public:
  explicit Memory(i64 bytes);
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  void* data() const { return data_; }

 private:
  void* data_;
  i64 bytes_;
};

void release_memory();  // gives back what is kept

}  // namespace fastmeta
