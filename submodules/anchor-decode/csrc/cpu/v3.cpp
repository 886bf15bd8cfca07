// The kernels for x86-64-v3, with those of its features that choose.h tests for.
#include "cpu_variants.h"
#include "kernels.h"

#if defined(CPU_KERNELS_BY_CPU)
#include "kernels/standard.h"

#define ANCHOR_DECODE_VARIANT v3
#define ANCHOR_DECODE_TABLE kernels_v3
#define ANCHOR_DECODE_AVX2
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,bmi,bmi2,popcnt"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,bmi,bmi2,popcnt")
#endif
#include "kernels/decode.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
