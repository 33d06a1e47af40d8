// test_math.cpp with AVX2 and fused multiply-adds.
#ifdef FASTMETA_HAS_AVX2
#pragma GCC target("avx2,fma")
#define FASTMETA_ISA avx2_math
#define FASTMETA_VECTOR_BYTES 32
#define CPU_RUNS_THIS (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
#endif
#include "test_math.cpp"
