// Every standard header that the kernels use. v3.cpp and v4.cpp include it before they raise the instruction set: so
// functions that the linker may share between the variants and with the rest of the process, such as the growth of
// std::vector, are compiled for any CPU, while the kernels may still inline them. Include nothing else in kernels/.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

// clang's `#pragma clang attribute` passes lambdas by: DGR_LAMBDA, after their parameters, gives them the instruction
// set. GCC's `#pragma GCC target` reaches them.
#if !defined(DGR_LAMBDA)
#define DGR_LAMBDA
#endif
