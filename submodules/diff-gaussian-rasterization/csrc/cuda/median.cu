// The Gaussian at which half of a pixel's light is gone: a block a tile, a thread a pixel that reads its tile's list alone.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include "../args.h"
#include "../common/blend.h"
#include "tiles.cuh"

namespace dgr {
namespace {

using at::Tensor;

template <class S>
__global__ void __launch_bounds__(kThreads)
    median_kernel(Lists<S> lists, int64_t pairs, const int32_t* __restrict__ order, Grid grid, int32_t* __restrict__ median) {
  const Place place(grid, int(blockIdx.x));
  if (!place.inside) return;
  // Within the lists, whatever they are called with.
  const int64_t last = lists.tile_start[blockIdx.x + 1], end = last < pairs ? last : pairs;
  int32_t found = -1;
  S t = 1;
  for (int64_t at = lists.tile_start[blockIdx.x]; found < 0 && at >= 0 && at < end; ++at) {
    const int32_t rank = lists.ranks[at];
    const Record<S>& r = *reinterpret_cast<const Record<S>*>(lists.records + rank * lists.stride);
    const S dx = S(place.x) + S(0.5) - r.x, dy = S(place.y) + S(0.5) - r.y;
    blend(opacity_at(exponent(r.a, row_terms(r.log_opacity, r.b, r.c, dy), dx)), t);
    if (t <= S(kMedian)) found = order[rank];
  }
  median[place.pixel] = found;
}

Tensor median_cuda(const Tensor& alpha, const Tensor& records, const Tensor& order, const Tensor& tile_start, const Tensor& lists,
                   int64_t left, int64_t top) {
  const Grid grid(window_of_plane(alpha, left, top));
  const c10::cuda::CUDAGuard guard(alpha.device());
  const Tensor rows = records.contiguous(), ids = order.contiguous(), firsts = tile_start.contiguous(), both = lists.contiguous();
  Tensor out = at::empty({grid.height, grid.width}, alpha.options().dtype(at::kInt));
  on_scalar(alpha, [&](auto tag) {
    using S = decltype(tag);
    check_walked(alpha, rows, ids, firsts, both, grid.count(), kHeader<S>);
    const Lists<S> walked{data<S>(rows), rows.size(1), data<int32_t>(firsts), data<int32_t>(both)};
    launch(median_kernel<S>, dim3(unsigned(grid.count())), walked, both.numel() / 2, data<int32_t>(ids), grid, data<int32_t>(out));
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(diff_gaussian_rasterization, CUDA, m) { m.impl("median", &median_cuda); }

}  // namespace dgr
