// The kernels for x86-64-v4, with those of its features that choose.h tests for.
#include "cpu_variants.h"
#include "kernels.h"

#if defined(CPU_KERNELS_BY_CPU)
#include "kernels/standard.h"

#define ANCHOR_DECODE_VARIANT v4
#define ANCHOR_DECODE_TABLE kernels_v4
#define ANCHOR_DECODE_AVX2
#define ANCHOR_DECODE_AVX512
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,bmi,bmi2,popcnt,avx512f,avx512cd,avx512bw,avx512dq,avx512vl"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,bmi,bmi2,popcnt,avx512f,avx512cd,avx512bw,avx512dq,avx512vl")
#endif
#include "kernels/decode.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
