// CUDA's words for a host compiler: a block is one std::thread a CUDA thread, which a real barrier
// holds together, and another one the blocks of a cluster. ThreadSanitizer then sees every access
// that no barrier orders.
#pragma once

#pragma GCC diagnostic ignored "-Wunknown-pragmas"  // unroll

#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))

struct Index {
  unsigned x = 0, y = 0;
};
inline thread_local Index threadIdx, blockIdx;
inline Index blockDim, gridDim;

inline int __clz(int value) { return value ? __builtin_clz(unsigned(value)) : 32; }

inline unsigned __umulhi(unsigned a, unsigned b) {
  return unsigned((std::uint64_t(a) * b) >> 32);
}

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

// The blocks of a cluster run at the same time, each with shared memory of its own; a block without
// a cluster is the only one of its own.
struct OneCluster {
  std::vector<char*> shared;  // of each block
  Barrier barrier;
  std::vector<std::unique_ptr<Barrier>> block_barriers;

  OneCluster(std::vector<char*> memory, int threads)
      : shared(std::move(memory)), barrier(int(shared.size()) * threads) {
    for (size_t b = 0; b < shared.size(); ++b)
      block_barriers.push_back(std::make_unique<Barrier>(threads));
  }
};
inline OneCluster* cluster = nullptr;
inline thread_local unsigned rank_in_cluster = 0;

inline void __syncthreads() { cluster->block_barriers[rank_in_cluster]->wait(); }
inline unsigned __clusterRelativeBlockRank() { return rank_in_cluster; }
// A wait needs the arrival before it, and nothing happens between the two here.
inline void __cluster_barrier_arrive() {}
inline void __cluster_barrier_wait() { cluster->barrier.wait(); }
inline void* __cluster_map_shared_rank(const void* p, unsigned rank) {
  return cluster->shared[rank] + (static_cast<const char*>(p) - cluster->shared[rank_in_cluster]);
}

// body(shared memory) on every thread of every cluster of shared.size() blocks, one cluster after
// another. Shared memory is lost when its block has come to the end.
template <class F>
void launch_on_host(unsigned clusters, std::vector<char*> shared, size_t bytes, unsigned threads,
                    F body) {
  const unsigned blocks = unsigned(shared.size());
  blockDim.x = threads;
  gridDim.x = clusters * blocks;
  OneCluster one(std::move(shared), int(threads));
  cluster = &one;
  std::vector<std::thread> team;
  for (unsigned b = 0; b < blocks; ++b)
    for (unsigned t = 0; t < threads; ++t)
      team.emplace_back([&, b, t] {
        threadIdx.x = t;
        rank_in_cluster = b;
        for (unsigned c = 0; c < clusters; ++c) {
          blockIdx.x = c * blocks + b;
          body(one.shared[b]);
          __syncthreads();
          if (t == 0) std::memset(one.shared[b], 255, bytes);
          __syncthreads();
        }
      });
  for (std::thread& thread : team) thread.join();
}
