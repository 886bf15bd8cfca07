// Absolute gradients of the projected means: a block a tile, a thread a pixel, a Gaussian after the other. Each costs two
// barriers: it is for densification that asks for it, and not the backward pass.
#include <ATen/core/Tensor.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include <optional>

#include "../args.h"
#include "../common/blend.h"
#include "tiles.cuh"

namespace dgr {
namespace {

using at::Tensor;
using OptTensor = std::optional<Tensor>;

template <class S> struct Canvas { const S *image, *alpha, *depth; };  // null: no gradient

// `rows`: [pairs, 2], zeros.
template <class S>
__global__ void __launch_bounds__(kThreads)
    absolute_kernel(Lists<S> lists, const int32_t* __restrict__ numbers, int64_t pairs, Grid grid, int channels, int features,
                    Canvas<S> images, Canvas<S> grads, S* __restrict__ rows) {
  __shared__ S sums[kWarps][2];
  const Place place(grid, int(blockIdx.x));
  const int64_t area = grid.width * grid.height, pixel = place.pixel;
  // Within the lists, whatever they are called with.
  const auto place_of = [&](int64_t tile) {
    const int64_t at = lists.tile_start[tile];
    return at < 0 ? int64_t(0) : at < pairs ? at : pairs;
  };
  const int64_t end = place_of(blockIdx.x + 1);
  // The gradient of a feature at this pixel.
  const auto gradient = [&](int feature) {
    const S* of = feature == channels ? grads.depth : grads.image;
    return of ? of[feature == channels ? pixel : feature * area + pixel] : S(0);
  };
  S t = place.inside ? S(1) : S(-1), rest = 0, alpha_grad = 0;
  if (place.inside) {
    if (grads.alpha) alpha_grad = grads.alpha[pixel];
    rest = alpha_grad * images.alpha[pixel];
    for (int f = 0; f < features; ++f)
      rest += gradient(f) * (f == channels ? images.depth[pixel] : images.image[f * area + pixel]);
  }
  for (int64_t at = place_of(blockIdx.x); at < end; ++at) {
    if (!__syncthreads_or(t > S(0))) break;  // also: the sums before are read
    const Record<S>& r = *reinterpret_cast<const Record<S>*>(lists.records + lists.ranks[at] * lists.stride);
    S x = 0, y = 0;
    if (t > S(0)) {
      const S dx = S(place.x) + S(0.5) - r.x, dy = S(place.y) + S(0.5) - r.y;
      S color_grad = alpha_grad, weight;
      for (int f = 0; f < features; ++f) color_grad += gradient(f) * r.features()[f];
      const S v = blend_vjp(opacity_at(exponent(r.a, row_terms(r.log_opacity, r.b, r.c, dy), dx)), color_grad, t, rest, weight);
      const S a = S(-2 * kLn2) * r.a, b = S(-kLn2) * r.b, c = S(-2 * kLn2) * r.c;
      x = magnitude(v * (a * dx + b * dy));
      y = magnitude(v * (b * dx + c * dy));
    }
    x = warp_sum(x);
    y = warp_sum(y);
    if (place.lane == 0) sums[place.warp][0] = x, sums[place.warp][1] = y;
    __syncthreads();
    if (threadIdx.x < 2) {
      S total = 0;
      for (int warp = 0; warp < kWarps; ++warp) total += sums[warp][threadIdx.x];
      if (const int64_t number = numbers[at]; number < pairs) rows[2 * number + threadIdx.x] = total;
    }
  }
}

// One thread a rank: its pairs in order.
template <class S>
__global__ void __launch_bounds__(kThreads)
    sum_absolute(const S* __restrict__ rows, const int32_t* __restrict__ order, const int32_t* __restrict__ pair_start, int64_t pairs,
                 int64_t visible, S* __restrict__ out) {
  const int64_t rank = thread_index();
  if (rank >= visible) return;
  S x = 0, y = 0;
  for (int64_t pair = pair_start[rank]; pair < pair_start[rank + 1] && pair < pairs; ++pair) x += rows[2 * pair], y += rows[2 * pair + 1];
  out[2 * int64_t(order[rank])] = x;
  out[2 * int64_t(order[rank]) + 1] = y;
}

Tensor absolute_gradient_cuda(const OptTensor& grad_image, const OptTensor& grad_alpha, const OptTensor& grad_depth, const Tensor& image,
                              const Tensor& alpha, const Tensor& depth, const Tensor& records, const Tensor& order, const Tensor& pair_start,
                              const Tensor& tile_start, const Tensor& lists, int64_t gaussians, int64_t left, int64_t top, const OptTensor& tiles) {
  const Grid grid(window_of_image(image, left, top));
  check_tiles(tiles, image.size(2), image.size(1), image);  // those that are not drawn have empty lists
  const c10::cuda::CUDAGuard guard(image.device());
  const int64_t channels = image.size(0), visible = order.numel(), pairs = lists.numel() / 2;
  int64_t stride = 0;
  on_scalar(image, [&](auto tag) { stride = record_stride<decltype(tag)>(channels + 1); });
  check_composed(grad_image, grad_alpha, grad_depth, image, alpha, depth, records, order, pair_start, tile_start, lists, gaussians,
                 grid.count(), stride);
  const Tensor colors = image.contiguous(), opacity = alpha.contiguous(), distance = depth.contiguous(), rows_of = records.contiguous();
  const Tensor ids = order.contiguous(), starts = pair_start.contiguous(), firsts = tile_start.contiguous(), both = lists.contiguous();
  const OptTensor gi = contiguous(grad_image), ga = contiguous(grad_alpha), gd = contiguous(grad_depth);
  Tensor out = at::zeros({gaussians, 2}, image.options());
  on_scalar(image, [&](auto tag) {
    using S = decltype(tag);
    const auto in = [](const OptTensor& t) { return t ? data<S>(*t) : nullptr; };
    const Lists<S> walked{data<S>(rows_of), stride, data<int32_t>(firsts), data<int32_t>(both)};
    const Tensor rows = at::zeros({pairs, 2}, image.options());
    launch(absolute_kernel<S>, dim3(unsigned(grid.count())), walked, data<int32_t>(both) + pairs, pairs, grid, int(channels),
           int(channels + (grad_depth ? 1 : 0)), Canvas<S>{data<S>(colors), data<S>(opacity), data<S>(distance)},
           Canvas<S>{in(gi), in(ga), in(gd)}, data<S>(rows));
    launch(sum_absolute<S>, blocks_of(visible), data<S>(rows), data<int32_t>(ids), data<int32_t>(starts), pairs, visible,
           data<S>(out));
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(diff_gaussian_rasterization, CUDA, m) { m.impl("absolute_gradient", &absolute_gradient_cuda); }

}  // namespace dgr
