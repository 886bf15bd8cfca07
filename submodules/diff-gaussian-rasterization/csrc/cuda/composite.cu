// Driver of common/blend.h, forward: a block of threads for each tile, a thread for each pixel, records in shared
// memory. A warp whose pixels are all finished skips records; a block stops when all of its warps are finished.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include <optional>
#include <tuple>
#include <type_traits>

#include "../args.h"
#include "../common/blend.h"
#include "bin.cuh"
#include "longest.cuh"

namespace dgr {
namespace {

using at::Tensor;

// Whole words of votes, as many records as one unit a thread can bring.
template <class S, int N> constexpr int kDrawBatch = kIsSmall<S> && N <= 4 ? 2 * kWarp : kWarp;

template <class S> struct Images { S *image, *alpha, *depth; };

// blockIdx.x: place in `tiles`, which says which tile; blockIdx.y: chunk of N features.
template <class S, int N>
__global__ void __launch_bounds__(kThreads)
    draw_kernel(Lists<S> lists, const int32_t* __restrict__ tiles, Grid grid, const S* __restrict__ background, int channels, Images<S> out) {
  constexpr int kSize = kDrawBatch<S, N>;
  __shared__ Batch<S, N, kSize> batch;
  const int tile = tiles[blockIdx.x], chunk = blockIdx.y;
  const Place place(grid, tile);
  const uint32_t end = lists.tile_start[tile + 1];
  uint32_t from = lists.tile_start[tile];
  S t = place.inside ? S(1) : S(-1), sums[N] = {};
  auto next = batch.fetch(lists, from, end, chunk);
  for (; from < end; from += kSize) {
    if (!__syncthreads_or(t > S(0))) break;  // also: the batch before is done with
    batch.put(next);
    __syncthreads();
    next = batch.fetch(lists, from + kSize, end, chunk);
    for (int first = 0; first < kSize && from + first < end; first += kWarp) {
      if (!__any_sync(kAllLanes, t > S(0))) break;
      const int mine = first + place.lane;
      unsigned hits = __ballot_sync(kAllLanes, from + mine < end && place.meets(batch.record(mine)));
      while (hits) {
        const Record<S>& r = batch.record(first + __ffs(int(hits)) - 1);
        hits &= hits - 1;
        const S dx = S(place.x) + S(0.5) - r.x, dy = S(place.y) + S(0.5) - r.y;
        const S weight = blend(opacity_at(exponent(r.a, row_terms(r.log_opacity, r.b, r.c, dy), dx)), t);
        const S* features = r.features();
#pragma unroll
        for (int k = 0; k < N; ++k) sums[k] += weight * features[k];
      }
    }
  }
  if (!place.inside) return;
  const int64_t pixels = grid.width * grid.height, pixel = place.pixel;
  t = magnitude(t);
  if (chunk == 0) out.alpha[pixel] = S(1) - t;
#pragma unroll
  for (int k = 0; k < N; ++k) {
    const int feature = chunk * N + k;
    if (feature < channels) out.image[feature * pixels + pixel] = sums[k] + background[feature] * t;
    else if (feature == channels) out.depth[pixel] = sums[k];
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> composite_cuda(
    const Tensor& means2d, const Tensor& conics, const Tensor& depths, const Tensor& radii, const Tensor& opacities, const Tensor& colors,
    const Tensor& background, int64_t width, int64_t height, at::OptionalIntArrayRef window, const std::optional<Tensor>& tiles,
    const std::optional<Tensor>& absolute, int64_t fixed, int64_t capacity) {
  check_composite(means2d, conics, depths, radii, opacities, colors, background, width, height);
  check_fixed(fixed, means2d.size(0));
  check_capacity(capacity);
  const Grid grid(window_of(window, width, height));
  check_tiles(tiles, grid.width, grid.height, means2d);
  const c10::cuda::CUDAGuard guard(means2d.device());
  const int64_t channels = colors.size(1), features = channels + 1;
  Tensor image = at::empty({channels, grid.height, grid.width}, means2d.options());
  Tensor alpha = at::empty({grid.height, grid.width}, means2d.options()), depth = at::empty({grid.height, grid.width}, means2d.options());
  const Tensor back = background.contiguous();
  Bins bins;
  on_scalar(means2d, [&](auto tag) {
    using S = decltype(tag);
    const auto draw = [&](const Bins& from) {
      const Lists<S> lists{data<S>(from.records), from.records.size(1), data<int32_t>(from.tile_start), data<int32_t>(from.lists)};
      const Tensor by_length = longest_first(from.tile_start);
      const auto in_chunks = [&](auto in_chunk) {
        constexpr int N = decltype(in_chunk)::value;
        launch(draw_kernel<S, N>, dim3(unsigned(grid.count()), unsigned(chunks_of(features, N))), lists, data<int32_t>(by_length), grid,
               data<S>(back), int(channels), Images<S>{data<S>(image), data<S>(alpha), data<S>(depth)});
      };
      if constexpr (!kIsSmall<S>) in_chunks(std::integral_constant<int, 4>{});
      else if (features <= 4) in_chunks(std::integral_constant<int, 4>{});
      else in_chunks(std::integral_constant<int, 8>{});
    };
    bins = bin<S>(means2d.contiguous(), conics.contiguous(), depths.contiguous(), radii.contiguous(), opacities.contiguous(),
                  colors.contiguous(), grid, tiles, capacity, draw);
  });
  return {image, alpha, depth, bins.records, bins.order, bins.pair_start, bins.tile_start, bins.lists};
}

}  // namespace

TORCH_LIBRARY_IMPL(diff_gaussian_rasterization, CUDA, m) { m.impl("composite", &composite_cuda); }

}  // namespace dgr
