// Which of the compiled variants of the kernels this CPU runs. The file is the same in the four extensions.
//
// On x86-64 the kernels are compiled for x86-64-v4 (AVX-512) and x86-64-v3 (AVX2 and FMA); all other code, which
// includes the choice and the error if neither runs, is compiled for any x86-64. With NATIVE=1 (CPU_KERNELS_NATIVE),
// and on other architectures, there is one variant, compiled with the flags of the build.
#pragma once

#if defined(__x86_64__) && !defined(CPU_KERNELS_NATIVE)
#define CPU_KERNELS_BY_CPU
#endif
