// How a test program tells what does not hold.
#pragma once

#include <cstdio>
#include <string>

// Fresh memory is all ones, a NaN: what is read before it is written does not stay hidden.
extern "C" __attribute__((visibility("default"))) const char* __asan_default_options() {
  return "max_malloc_fill_size=1073741824:malloc_fill_byte=255";
}

namespace fastmeta::test {

inline int failures = 0;

inline void expect(bool condition, const std::string& where, const char* what) {
  if (condition) return;
  std::printf("FAILED: %s: %s\n", where.c_str(), what);
  ++failures;
}

}  // namespace fastmeta::test
