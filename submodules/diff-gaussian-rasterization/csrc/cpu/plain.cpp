// The kernels by the compiler's own flags: where the CPU is not x86-64, and where NATIVE=1 built for this machine alone.
#include "cpu_variants.h"
#include "kernels.h"

#if !defined(CPU_KERNELS_BY_CPU)
#define DGR_TABLE kernels_plain
#if defined(__AVX2__)
#define DGR_AVX2
#endif
#if defined(__AVX512VL__) && defined(__AVX512DQ__)
#define DGR_AVX512
#endif
#include "kernels/table.h"
#endif
