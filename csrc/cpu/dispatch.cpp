#include "dispatch.h"

#include <dlfcn.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "runtime.h"

namespace fastmeta {

// ---- instruction sets --------------------------------------------------------------------------

namespace {

[[maybe_unused]] bool always() { return true; }
#ifdef FASTMETA_HAS_AVX2
[[maybe_unused]] bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
#endif
#ifdef FASTMETA_HAS_AVX512
[[maybe_unused]] bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
}
#endif

const Variant all_variants[] = {
#ifdef FASTMETA_FLOATS_OF
    // A build for tests, where each set of kernels takes minutes to compile: the widest floats, and the
    // doubles of the fewest lanes.
    {"mixed", &FASTMETA_FLOATS_OF::kernels_float, &portable::kernels_double, always},
#else
#ifdef FASTMETA_HAS_AVX512
    {"avx512", &avx512::kernels_float, &avx512::kernels_double, has_avx512},
#endif
#ifdef FASTMETA_HAS_AVX2
    {"avx2", &avx2::kernels_float, &avx2::kernels_double, has_avx2},
#endif
#ifdef FASTMETA_HAS_PORTABLE
    {"portable", &portable::kernels_float, &portable::kernels_double, always},
#endif
#endif
    {nullptr, nullptr, nullptr, nullptr},
};

}  // namespace

const Variant* variants() { return all_variants; }

const Variant* find_variant(const char* name) {
  for (const Variant* v = all_variants; v->name; ++v)
    if (v->runs_here() && (!name || !std::strcmp(v->name, name))) return v;
  return nullptr;
}

// ---- threads -----------------------------------------------------------------------------------

namespace {

// The entry point behind `#pragma omp parallel` in libgomp, and in LLVM's and Intel's runtimes,
// which export it too. Looked up rather than linked: linking would load a second runtime, whose
// threads would fight PyTorch's for the cores.
using GompParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

GompParallel gomp_parallel() {
  static const GompParallel found =
      reinterpret_cast<GompParallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  return found;
}

// The number of the calling thread in its team, from the runtime that made the team; nullptr: unknown.
using ThreadNumber = int (*)();

ThreadNumber thread_number() {
  static const ThreadNumber found = [] {
    Dl_info info;
    if (!gomp_parallel() || !dladdr(reinterpret_cast<void*>(gomp_parallel()), &info) || !info.dli_fname)
      return ThreadNumber(nullptr);
    void* runtime = dlopen(info.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
    return runtime ? reinterpret_cast<ThreadNumber>(dlsym(runtime, "omp_get_thread_num")) : nullptr;
  }();
  return found;
}

// Every worker has a stretch of 0..n of its own, begins with that, and then helps the others. The same
// thread is the same worker in every call, so that it finds in its caches what it left there.
struct Region {
  static constexpr i64 most_stretches = 64;
  struct alignas(64) Counter {  // a line of the cache each
    std::atomic<i64> next;
  };

  i64 n, stretches;
  void (*body)(void*, i64, i64);
  void* context;
  std::atomic<i64> arrived{0};
  Counter counters[most_stretches];

  Region(i64 n, i64 workers, void (*body)(void*, i64, i64), void* context)
      : n(n), stretches(workers < most_stretches ? workers : most_stretches), body(body), context(context) {
    for (i64 s = 0; s < stretches; ++s) counters[s].next.store(begin(s), std::memory_order_relaxed);
  }
  i64 begin(i64 stretch) const { return n * stretch / stretches; }
};

void work(Region& region, i64 worker) {
  for (i64 turn = 0; turn < region.stretches; ++turn) {
    const i64 stretch = (worker + turn) % region.stretches, end = region.begin(stretch + 1);
    for (i64 i; (i = region.counters[stretch].next.fetch_add(1, std::memory_order_relaxed)) < end;)
      region.body(region.context, worker, i);
  }
}

void work_in_team(void* argument) {
  Region& region = *static_cast<Region*>(argument);
  work(region, thread_number() ? thread_number()() : region.arrived.fetch_add(1, std::memory_order_relaxed));
}

}  // namespace

#if defined(__SSE2__)
FlushedDenormals::FlushedDenormals() : before_(_mm_getcsr()) {
  constexpr unsigned results = 1u << 15, operands = 1u << 6;
  _mm_setcsr(unsigned(before_) | results | operands);
}
FlushedDenormals::~FlushedDenormals() { _mm_setcsr(unsigned(before_)); }
#elif defined(__aarch64__)
FlushedDenormals::FlushedDenormals() {
  asm volatile("mrs %0, fpcr" : "=r"(before_));
  asm volatile("msr fpcr, %0" : : "r"(before_ | 1ull << 24));
}
FlushedDenormals::~FlushedDenormals() { asm volatile("msr fpcr, %0" : : "r"(before_)); }
#else
FlushedDenormals::FlushedDenormals() : before_(0) {}
FlushedDenormals::~FlushedDenormals() = default;
#endif

void parallel_for(i64 n, i64 workers, void (*body)(void*, i64, i64), void* context) {
  const i64 wanted = n < workers ? n : workers;
  Region region(n, wanted > 1 ? wanted : 1, body, context);
  if (wanted > 1 && gomp_parallel())
    gomp_parallel()(work_in_team, &region, unsigned(wanted), 0);
  else
    work(region, 0);
}

const char* thread_runtime() {
  if (!gomp_parallel()) return "none";
  Dl_info info;
  if (!dladdr(reinterpret_cast<void*>(gomp_parallel()), &info) || !info.dli_fname) return "unknown";
  const char* slash = std::strrchr(info.dli_fname, '/');
  return slash ? slash + 1 : info.dli_fname;
}

int processors() {
  static const long online = sysconf(_SC_NPROCESSORS_ONLN);
  return online > 0 ? int(online) : 1;
}

// ---- memory ------------------------------------------------------------------------------------

namespace {

struct Block {
  void* data;
  i64 bytes;
};

std::mutex pool_mutex;

// Never destroyed: a Memory may be let go of while the process ends.
std::vector<Block>& pool() {
  static auto* blocks = new std::vector<Block>;
  return *blocks;
}

constexpr i64 huge_page = i64(1) << 21;

void* fresh(i64 bytes) {
  const i64 alignment = bytes >= huge_page ? huge_page : 64;
  const i64 rounded = (bytes + alignment - 1) / alignment * alignment;
  void* data = std::aligned_alloc(size_t(alignment), size_t(rounded));
  if (!data) throw std::bad_alloc();
#if defined(__linux__)
  if (bytes >= huge_page) madvise(data, size_t(rounded), MADV_HUGEPAGE);  // a hint; failing is fine
#endif
  return data;
}

}  // namespace

Memory::Memory(i64 bytes) : data_(nullptr), bytes_(bytes > 64 ? bytes : 64) {
  {
    const std::lock_guard<std::mutex> lock(pool_mutex);
    auto& blocks = pool();
    size_t best = blocks.size();
    for (size_t i = 0; i < blocks.size(); ++i)
      if (blocks[i].bytes >= bytes_ && blocks[i].bytes <= 2 * bytes_ &&
          (best == blocks.size() || blocks[i].bytes < blocks[best].bytes))
        best = i;
    if (best < blocks.size()) {
      data_ = blocks[best].data;
      bytes_ = blocks[best].bytes;
      blocks.erase(blocks.begin() + i64(best));
    }
  }
  if (!data_) data_ = fresh(bytes_);
}

// The newest blocks are kept: the shapes of the running loop, not those of the one before.
Memory::~Memory() {
  constexpr size_t most_blocks = 16;
  constexpr i64 most_bytes = i64(1) << 30;
  std::vector<Block> surplus;
  {
    const std::lock_guard<std::mutex> lock(pool_mutex);
    auto& blocks = pool();
    blocks.push_back({data_, bytes_});
    i64 bytes = 0;
    size_t keep = 0;
    while (keep < blocks.size() && keep < most_blocks) {
      bytes += blocks[blocks.size() - 1 - keep].bytes;
      if (bytes > most_bytes) break;
      ++keep;
    }
    surplus.assign(blocks.begin(), blocks.end() - std::ptrdiff_t(keep));
    blocks.erase(blocks.begin(), blocks.end() - std::ptrdiff_t(keep));
  }
  for (const Block& block : surplus) std::free(block.data);
}

void release_memory() {
  const std::lock_guard<std::mutex> lock(pool_mutex);
  for (const Block& block : pool()) std::free(block.data);
  pool().clear();
}

}  // namespace fastmeta
