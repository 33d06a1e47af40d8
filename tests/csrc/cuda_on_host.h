// CUDA's words for a host compiler: a block is one std::thread a CUDA thread, which a real barrier
// holds together. ThreadSanitizer then sees every access that no barrier orders.
#pragma once

#pragma GCC diagnostic ignored "-Wunknown-pragmas"  // unroll

#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))

struct Index {
  unsigned x = 0;
};
inline thread_local Index threadIdx, blockIdx;
inline Index blockDim, gridDim;

inline int __clz(int value) { return value ? __builtin_clz(unsigned(value)) : 32; }

class Barrier {
 public:
  explicit Barrier(int threads) : threads_(threads), missing_(threads) {}
  void wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    if (--missing_ == 0) {
      missing_ = threads_;
      ++generation_;
      all_here_.notify_all();
      return;
    }
    const unsigned mine = generation_;
    all_here_.wait(lock, [&] { return generation_ != mine; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable all_here_;
  int threads_, missing_;
  unsigned generation_ = 0;
};

inline Barrier* block_barrier = nullptr;
inline void __syncthreads() { block_barrier->wait(); }

// body() on every thread of every block, one block after another.
template <class F>
void launch_on_host(unsigned blocks, unsigned threads, F body) {
  blockDim.x = threads;
  gridDim.x = blocks;
  Barrier barrier{int(threads)};
  block_barrier = &barrier;
  std::vector<std::thread> team;
  for (unsigned t = 0; t < threads; ++t)
    team.emplace_back([&, t] {
      threadIdx.x = t;
      for (unsigned b = 0; b < blocks; ++b) {
        blockIdx.x = b;
        body(b);
        __syncthreads();
      }
    });
  for (std::thread& thread : team) thread.join();
}
