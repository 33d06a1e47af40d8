// What simd.h and simd_math.h are to a CPU: here a vector has one lane, and the elementary functions
// are CUDA's own, the accurate ones.
#pragma once

#include <cmath>
#include <type_traits>

#include "../network/spec.h"

#if !defined(__CUDACC__) && !defined(__device__)  // text that runs on the host alone
#define __device__
#define __host__
#define __forceinline__ inline
#endif

#define FASTMETA_ISA cuda
#define FASTMETA_CODE __device__
#define FASTMETA_INLINE __device__ __forceinline__
#define FASTMETA_BOTH __host__ __device__
// Of loops that are in many functions: no copies of what is in them.
#define FASTMETA_ROLLED _Pragma("unroll 1")
#define FASTMETA_INLINE_BOTH __host__ __device__ __forceinline__
// The text of a program for its own shapes (print.h) has every bound of a loop and every activation as a
// constant: functions that the interpreter shares between shapes are copied, and loops go further ahead.
#ifdef FASTMETA_COMPILED
#define FASTMETA_APART FASTMETA_INLINE
#else
#define FASTMETA_APART __device__ __noinline__
#endif
// A template that calls what it is given, on whichever side it runs.
#ifdef __CUDACC__
#define FASTMETA_ANY_CALLER _Pragma("nv_exec_check_disable")
#else
#define FASTMETA_ANY_CALLER
#endif

namespace fastmeta::cuda {

template <class R>
using Vec = R;
template <class R>
using Mask = bool;
template <class R>
constexpr int lanes = 1;

template <class R>
FASTMETA_INLINE R load(const R* p) { return *p; }
template <class R>
FASTMETA_INLINE void store(R* p, std::common_type_t<R> v) { *p = v; }
template <class R>
FASTMETA_INLINE R splat(R x) { return x; }
template <class V>
FASTMETA_INLINE V select(bool mask, V a, V b) { return mask ? a : b; }
template <class V>
FASTMETA_INLINE V vmax(V a, V b) { return a > b ? a : b; }

template <class R>
FASTMETA_INLINE R absolute(R x) { return x < R(0) ? -x : x; }

FASTMETA_INLINE float exp(float x) { return ::expf(x); }
FASTMETA_INLINE double exp(double x) { return ::exp(x); }
FASTMETA_INLINE float log(float x) { return ::logf(x); }
FASTMETA_INLINE double log(double x) { return ::log(x); }
FASTMETA_INLINE float log1p(float x) { return ::log1pf(x); }
FASTMETA_INLINE double log1p(double x) { return ::log1p(x); }
FASTMETA_INLINE float tanh(float x) { return ::tanhf(x); }
FASTMETA_INLINE double tanh(double x) { return ::tanh(x); }
FASTMETA_INLINE float erf(float x) { return ::erff(x); }
FASTMETA_INLINE double erf(double x) { return ::erf(x); }
FASTMETA_INLINE void sincos(float x, float& s, float& c) { ::sincosf(x, &s, &c); }
FASTMETA_INLINE void sincos(double x, double& s, double& c) { ::sincos(x, &s, &c); }

FASTMETA_INLINE float sqrt(float x) { return ::sqrtf(x); }
FASTMETA_INLINE double sqrt(double x) { return ::sqrt(x); }
template <class R>
FASTMETA_INLINE R square_roots(R x) { return sqrt(x); }

template <class V>
FASTMETA_INLINE V sigmoid(V x) { return 1 / (1 + exp(-x)); }

FASTMETA_INLINE_BOTH i64 ceil_div(i64 a, i64 b) { return (a + b - 1) / b; }
FASTMETA_INLINE_BOTH i64 round_up(i64 a, i64 b) { return ceil_div(a, b) * b; }
FASTMETA_INLINE_BOTH i64 smaller(i64 a, i64 b) { return a < b ? a : b; }
FASTMETA_INLINE_BOTH i64 larger(i64 a, i64 b) { return a > b ? a : b; }

FASTMETA_INLINE int lesser(int a, int b) { return a < b ? a : b; }

// One running sum over 1600 terms loses twice what PyTorch loses; sums of at most `deepest` terms,
// added up, lose less.
constexpr int deepest = 256;  // a multiple of four: what follows begins aligned

// How many steps of a sum over k, of four each, are in flight at once; of sums down columns, of one.
#ifdef FASTMETA_COMPILED
FASTMETA_INLINE_BOTH constexpr int steps_ahead(int) { return 10; }
constexpr int rows_ahead = 10, terms_ahead = 2;
#else
FASTMETA_INLINE_BOTH constexpr int steps_ahead(int tile_rows) { return tile_rows < 4 ? 2 : 1; }
constexpr int rows_ahead = 4, terms_ahead = 1;
#endif

// Four neighbours, in one access of 16 bytes for float.
template <class R>
struct alignas(16) Quad {
  R v[4];
};

template <class R>
FASTMETA_INLINE Quad<R> quad(const R* p) { return *reinterpret_cast<const Quad<R>*>(p); }
template <class R>
FASTMETA_INLINE void put_quad(R* p, const Quad<R>& q) { *reinterpret_cast<Quad<R>*>(p) = q; }

}  // namespace fastmeta::cuda
