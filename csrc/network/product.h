// What a product is told: the contract between the passes and every team's products.
//
// C[m, n] = sum over terms and k of A(m, k) B(k, n), for any strides. Rows m and depth k are
// elements; columns n are vectors. All strides are in scalars.
#pragma once

namespace fastmeta::FASTMETA_ISA {

// a == nullptr: ones.
template <class R>
struct Term {
  const R* a;
  i64 a_m, a_k;
  const R* b;
  i64 b_k, b_n;
  i64 depth;
};

enum class Finish {
  Store,     // C = acc
  Bias,      // C = row[n] + acc
  Add,       // C = C + acc
  Subtract,  // C = C - acc
  Descend,   // C = from - scale * acc
  Step,      // C = from - rate * acc
  RateGrad,  // C = C - from * acc
};

// Where a tile goes. `from` has C's layout. `rate` holds an element a (m, column) in the layout of
// one task: a vector for Broadcast, a scalar for Direct, and with strides of its own on CUDA.
template <class R>
struct Target {
  R* c;
  i64 c_m;
  Finish finish = Finish::Store;
  const R* row = nullptr;
  const R* from = nullptr;
  const R* rate = nullptr;
  i64 rate_m = 0, rate_n = 0;
  R scale = 1;
  bool continues = false;  // the sum begins with what is in C; of a CPU's products alone
  i64 c_n = 0;  // from one vector of C to the next, where Lane says so
};

}  // namespace fastmeta::FASTMETA_ISA
