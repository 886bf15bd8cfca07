// Distances and the three smallest of them. Plain C++17: no torch, no device, no threads.
//
// S may be a scalar or a vector of queries. What bounds a box is computed by the very operations that measure a point,
// each of which rounds monotonically: a box that is skipped holds no nearer point. nvcc is free to fuse a product and a
// sum in one copy of an expression and not in the other, so on a GPU the operations are spelled out.
#pragma once

#include <cstdint>

#include "box.h"

#ifdef __CUDACC__
#define SIMPLE_KNN_HD __host__ __device__
#else
#define SIMPLE_KNN_HD
#endif

// The CPU's kernels are compiled once for each instruction set into one library (cpu/v3.cpp, cpu/v4.cpp). If two
// of them had a function of the same name, the linker would keep only one, perhaps for the wrong CPU: the inline
// namespace separates them.
#if !defined(SIMPLE_KNN_VARIANT)
#define SIMPLE_KNN_VARIANT plain
#endif

namespace simple_knn {
inline namespace SIMPLE_KNN_VARIANT {

constexpr int kNeighbours = 3;

template <typename S>
SIMPLE_KNN_HD inline S smaller(S a, S b) {
  return a < b ? a : b;
}

template <typename S>
SIMPLE_KNN_HD inline S larger(S a, S b) {
  return a < b ? b : a;
}

template <typename S>
SIMPLE_KNN_HD inline S squared_norm(S x, S y, S z) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(S) == 4) return __fmaf_rn(z, z, __fmaf_rn(y, y, __fmul_rn(x, x)));
  else return __fma_rn(z, z, __fma_rn(y, y, __dmul_rn(x, x)));
#else
  return x * x + y * y + z * z;
#endif
}

// The three smallest values seen, in order.
template <typename S>
struct Nearest {
  S first, second, third;

  SIMPLE_KNN_HD void insert(S d) {
    third = smaller(third, larger(second, d));
    second = smaller(second, larger(first, d));
    first = smaller(first, d);
  }
};

// The box of `count` > 0 things that have coordinates `at`.
template <typename T, typename P>
Box<T> bounds(const P* points, int64_t count) {
  Box<T> box;
  for (int axis = 0; axis < 3; ++axis) {
    T low = points[0].at[axis], high = low;
    for (int64_t i = 1; i < count; ++i) {
      low = smaller(low, points[i].at[axis]);
      high = larger(high, points[i].at[axis]);
    }
    box.low[axis] = low;
    box.high[axis] = high;
  }
  return box;
}

// Squared distance of two boxes, 0 where they touch.
template <typename T>
SIMPLE_KNN_HD inline T squared_distance(const Box<T>& a, const Box<T>& b) {
  T gap[3];
  for (int axis = 0; axis < 3; ++axis) {
    gap[axis] = larger(T(0), larger(a.low[axis] - b.high[axis], b.low[axis] - a.high[axis]));
  }
  return squared_norm(gap[0], gap[1], gap[2]);
}

}  // namespace SIMPLE_KNN_VARIANT
}  // namespace simple_knn
