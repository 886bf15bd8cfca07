// Called by the driver: the pass over bands of rows, compiled once for each instruction set (kernels/bands.h by v3.cpp,
// v4.cpp and plain.cpp). Plain pointers and numbers: no torch, no threads, and no type whose layout or code depends on
// the instruction set.
#pragma once

#include <cstdint>

#include "cpu_variants.h"

namespace fused_ssim {

template <typename T>
struct Images {
  const T *x, *y;  // [planes,H,W]
  int64_t height, width;
  bool valid;
  const T* weights;  // of the SSIM map, [H,W] or with `valid` [H-10,W-10], the same for all planes; null: ones
  T scale;
  T* grad;  // [planes,H,W], of `scale` times the sum of SSIM; null: only values are wanted

  // The image loss has these besides, and is not `valid`.
  const T* mask = nullptr;  // [H,W], multiplies both images, the same for all planes; null: ones
  bool similarity = true;   // whether SSIM is wanted
  bool distance = false;    // whether |x - y| is wanted; `grad` is then also that of `slope` times its sum
  T slope = 0;
};

struct Sums {
  double ssim, distance;  // 0 where they are not wanted
};

// Tasks are bands of rows of the planes, counted plane by plane. A band repeats 10 rows of its neighbours' work: with
// 64 rows this costs a sixth more, and there are still enough tasks for many threads.
constexpr int64_t kBandRows = 64;

struct Kernels {
  // Writes the sums, each pixel by its weight, over each of the tasks [begin, end) to their place in `sums`.
  void (*sum_float)(const Images<float>&, int64_t begin, int64_t end, Sums* sums);
  void (*sum_double)(const Images<double>&, int64_t begin, int64_t end, Sums* sums);

  auto of(float) const { return sum_float; }
  auto of(double) const { return sum_double; }
};

#if defined(CPU_KERNELS_BY_CPU)
extern const Kernels kernels_v3, kernels_v4;
#else
extern const Kernels kernels_plain;
#endif

}  // namespace fused_ssim
