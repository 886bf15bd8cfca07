// Which of the compiled variants of the kernels this CPU runs. The three extensions hold the same file.
//
// On x86-64 the kernels are compiled for x86-64-v4 (AVX-512) and x86-64-v3 (AVX2 and FMA), everything else for any
// x86-64: the choice itself, and the error where neither runs. NATIVE=1 (CPU_KERNELS_NATIVE) compiles everything for the
// builder's own CPU instead, and other architectures have what their compiler's flags say: one variant, without a choice.
#pragma once

#if defined(__x86_64__) && !defined(CPU_KERNELS_NATIVE)
#define CPU_KERNELS_BY_CPU
#endif
