// The kernels for x86-64-v4, with those of its features that choose.h tests for.
#include "cpu_variants.h"
#include "kernels.h"

#if defined(CPU_KERNELS_BY_CPU)
#include "kernels/standard.h"

#define FUSED_SSIM_VARIANT v4
#define FUSED_SSIM_TABLE kernels_v4
#define FUSED_SSIM_AVX2
#define FUSED_SSIM_AVX512
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,bmi,bmi2,popcnt,avx512f,avx512cd,avx512bw,avx512dq,avx512vl"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,bmi,bmi2,popcnt,avx512f,avx512cd,avx512bw,avx512dq,avx512vl")
#endif
#include "kernels/bands.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
