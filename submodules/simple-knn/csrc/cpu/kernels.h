// Called by the driver: the traversal of the tree, compiled once for each instruction set (kernels/packets.h by v3.cpp,
// v4.cpp and plain.cpp). Plain pointers and numbers: no torch, no threads, and no type whose layout or code depends on
// the instruction set.
#pragma once

#include <cstdint>

#include "../common/box.h"
#include "cpu_variants.h"

namespace simple_knn {

template <typename T>
struct Point {
  T at[3];
  int64_t row;
};

// Node i of level l holds the points [first(l, i), first(l, i + 1)); the leaves are the nodes of level `depth`.
template <typename T>
struct Tree {
  int64_t count;
  int depth;
  Point<T>* points;
  Box<T>* boxes;

  int64_t first(int level, int64_t i) const { return (count * i) >> level; }
  Box<T>& box(int level, int64_t i) const { return boxes[(int64_t(1) << level) - 1 + i]; }
};

struct Kernels {
  // The mean squared distances of the points of the leaves [begin, end), each at its row of `out`.
  void (*mean_float)(const Tree<float>&, int64_t begin, int64_t end, float* out);
  void (*mean_double)(const Tree<double>&, int64_t begin, int64_t end, double* out);

  auto of(float) const { return mean_float; }
  auto of(double) const { return mean_double; }
};

#if defined(CPU_KERNELS_BY_CPU)
extern const Kernels kernels_v3, kernels_v4;
#else
extern const Kernels kernels_plain;
#endif

}  // namespace simple_knn
