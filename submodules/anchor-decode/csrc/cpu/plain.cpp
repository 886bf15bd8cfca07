// The kernels with the compiler flags of the build: for CPUs other than x86-64, and for NATIVE=1.
#include "cpu_variants.h"
#include "kernels.h"

#if !defined(CPU_KERNELS_BY_CPU)
#define ANCHOR_DECODE_TABLE kernels_plain
#if defined(__AVX2__)
#define ANCHOR_DECODE_AVX2
#endif
#if defined(__AVX512VL__) && defined(__AVX512DQ__)
#define ANCHOR_DECODE_AVX512
#endif
#include "kernels/decode.h"
#endif
