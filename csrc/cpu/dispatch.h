// The builds of the kernels in this binary, and the one that runs here.
#pragma once

#include "../network/spec.h"

namespace fastmeta {

namespace portable {
extern const Kernels<float> kernels_float;
extern const Kernels<double> kernels_double;
}  // namespace portable
namespace avx2 {
extern const Kernels<float> kernels_float;
extern const Kernels<double> kernels_double;
}  // namespace avx2
namespace avx512 {
extern const Kernels<float> kernels_float;
extern const Kernels<double> kernels_double;
}  // namespace avx512

struct Variant {
  const char* name;
  const Kernels<float>* f32;
  const Kernels<double>* f64;
  bool (*runs_here)();
};

// Fastest first; ends with a nameless one.
const Variant* variants();
// By name, or nullptr: the fastest that runs here.
const Variant* find_variant(const char* name);

}  // namespace fastmeta
