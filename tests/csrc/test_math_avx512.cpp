// test_math.cpp with AVX-512.
#ifdef FASTMETA_HAS_AVX512
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,fma")
#define FASTMETA_ISA avx512_math
#define FASTMETA_VECTOR_BYTES 64
#define CPU_RUNS_THIS \
  (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && \
   __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
#endif
#include "test_math.cpp"
