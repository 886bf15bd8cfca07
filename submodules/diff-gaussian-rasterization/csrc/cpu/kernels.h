// Called by the drivers: the loops over Gaussians, pixels and pairs, compiled once for each instruction set
// (kernels/*.h by v3.cpp, v4.cpp and plain.cpp). Plain pointers and numbers: no torch, no threads, and no type whose
// layout or code depends on the instruction set.
#pragma once

#include <cstdint>
#include <vector>

#include "../common/window.h"
#include "cpu_variants.h"

namespace dgr {

struct View {
  double fx, fy, cx, cy;
  int64_t width, height;
  double near;
  Window window;
  Squares squares;  // of the window, which count for what is visible
};

// The Gaussians in the world. Shapes are scales and quats, or cov3d (upper triangle); those not given are null.
template <class S> struct World {
  const S *world_view, *means, *scales, *quats, *cov3d;
  S modifier;
};

template <class S> struct ScreenRows {
  S *means2d, *conics, *depths;  // null: only radii are wanted
  int32_t* radii;
};

// Gradients in, null where there are none, and out, null where they are not wanted.
template <class S> struct ProjectGrads {
  const S* conics;
  const int32_t* radii;
  const S *g_means2d, *g_conics, *g_depths;
  S *means, *scales, *quats, *cov3d;
};

// The rows of `record`, in depth order, and the list of every tile.
template <class S> struct DrawLists {
  const S* records;
  int64_t stride;
  const int32_t *tile_start, *ranks;
  const uint8_t* squares;  // which squares of each tile are drawn, a bit each (kernels/tiles.h); null: all
};

template <class S> struct Splats {
  const int32_t* ids;  // the Gaussian of each rank
  const S *means2d, *conics, *opacities, *colors, *depths;
  int64_t channels;
};

template <class S> struct Canvas {
  Window window;
  int64_t channels;
  const S* background;
  S *image, *alpha, *depth;
};

template <class S> struct CanvasGrads {
  Window window;
  int64_t channels;
  const S *image, *alpha, *depth;
  const S *g_image, *g_alpha, *g_depth;  // null where there is none
  S* pair_grads;                         // a row for each place of the lists
  S* background;                         // [tiles, channels]
  const int32_t* ids;                    // the Gaussian of each rank; null: all get gradients
  int64_t moving;                        // those from this one on get none
};

// The Gaussian in which the median of a pixel's light ends.
struct Medians {
  Window window;
  const int32_t* ids;  // the Gaussian of each rank
  int32_t* median;     // [height, width]; written where there is one
};

// From the rows of the pairs to those of the Gaussians.
template <class S> struct PairSums {
  const int32_t *ids, *pair_start, *places;
  const S* pair_grads;
  int64_t channels;
  S *means2d, *conics, *opacities, *colors, *depths;  // depths: null if not wanted
  int64_t moving;                                     // Gaussians from this one on get no gradients
};

// A tensor of a step of Adam: rows of `columns` entries. `visible`: which rows are moved; null: all.
template <class S> struct AdamRows {
  S *params, *moments, *squares;
  const S* grads;
  const bool* visible;
  int64_t columns;
  double rate, root2, beta1, beta2, eps;
};

// Each works on the items [begin, end), or on one tile; calls share only what they read.
template <class S> struct KernelsOf {
  void (*project)(const View&, const World<S>&, int64_t begin, int64_t end, const ScreenRows<S>&);
  // `view`: 12 sums for the rows of world_view, added to; null if not wanted.
  void (*project_vjp)(const View&, const World<S>&, int64_t begin, int64_t end, const ProjectGrads<S>&, double* view);
  void (*write_records)(const Splats<S>&, int64_t begin, int64_t end, S* records, int64_t stride);
  // Appends the tiles that each rank meets, counts them by tile, and writes how many the rank has.
  void (*list_tiles)(const DrawLists<S>&, const Window&, int64_t begin, int64_t end, std::vector<int32_t>& tiles, int32_t* count_of_tile,
                     int32_t* count_of_rank);
  void (*draw)(const DrawLists<S>&, const Canvas<S>&, int64_t tile);
  void (*draw_vjp)(const DrawLists<S>&, const CanvasGrads<S>&, int64_t tile);
  // Writes pair_grads, rows of two.
  void (*absolute)(const DrawLists<S>&, const CanvasGrads<S>&, int64_t tile);
  void (*median)(const DrawLists<S>&, const Medians&, int64_t tile);
  void (*sum_pairs)(const DrawLists<S>&, const PairSums<S>&, int64_t begin, int64_t end);
  void (*sh)(int degree, const S* dirs, const S* sh, int64_t coefficients, int64_t channels, int64_t begin, int64_t end, S* out);
  void (*sh_vjp)(int degree, const S* grad, const S* dirs, const S* sh, int64_t coefficients, int64_t channels, int64_t begin, int64_t end,
                 S* grad_dirs, S* grad_sh);
  void (*adam)(const AdamRows<S>&, int64_t begin, int64_t end);
};

struct Kernels {
  KernelsOf<float> of_float;
  KernelsOf<double> of_double;

  const KernelsOf<float>& of(float) const { return of_float; }
  const KernelsOf<double>& of(double) const { return of_double; }
};

#if defined(CPU_KERNELS_BY_CPU)
extern const Kernels kernels_v3, kernels_v4;
#else
extern const Kernels kernels_plain;
#endif

// The kernels for this CPU; raises an error if there are none.
const Kernels& kernels();

}  // namespace dgr
