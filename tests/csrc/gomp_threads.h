// GOMP_parallel on std::thread: ThreadSanitizer sees these threads, and not those of libgomp.
#pragma once

#include <atomic>
#include <thread>
#include <vector>

inline std::atomic<int> threads_started{0};

extern "C" __attribute__((visibility("default"))) void GOMP_parallel(void (*work)(void*),
                                                                     void* argument,
                                                                     unsigned count, unsigned) {
  std::vector<std::thread> others;
  for (unsigned i = 1; i < count; ++i) others.emplace_back(work, argument);
  threads_started += int(others.size());
  work(argument);
  for (std::thread& thread : others) thread.join();
}
