// CUDA driver of the image loss. The host waits for nothing: sums of weights and masks stay on the device.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/sum.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <tuple>

#include "../images.h"
#include "launch.h"
#include "tiles.cuh"

namespace fused_ssim {
namespace {

// L1 alone: the tiles' sums of absolute differences, and unless it is null the gradient of the term.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    tile_distances(const T* __restrict__ img1, const T* __restrict__ img2, const Tiles tiles, const Counts<T> counts,
                   double* __restrict__ distances, T* __restrict__ grad) {
  const Tile tile = Tile::of_block<T>(tiles);
  const T slope = T(counts.terms(tiles, 0.0).by_distance);
  const int x = tile.left + threadIdx.x % kTileColumns;
  double distance = 0;
  for (int row = threadIdx.x / kTileColumns; row < kTileRows<T>; row += kThreadRows) {
    const int y = tile.top + row;
    if (x >= tiles.width || y >= tiles.height) continue;
    const int64_t at = int64_t(y) * tiles.width + x, pixel = tile.offset + at;
    const T apart = counts.masked(at, img1[pixel]) - counts.masked(at, img2[pixel]);
    distance += double(counts.weighted(at, fabs(apart)));
    if (grad) grad[pixel] = counts.masked(at, counts.weighted(at, slope * sign(apart)));
  }
  distance = block_sum<0>(distance);
  if (threadIdx.x == 0) distances[blockIdx.x] = distance;
}

// One block: both terms and the slope of the first, from the tiles' sums; `sums` null: without SSIM. `windows`: the sum of the
// weights in one plane, or null for the number of pixels.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    terms_of_sums(const double* __restrict__ sums, const double* __restrict__ distances, const Tiles tiles,
                  const Counts<T> counts, const double* __restrict__ windows, double dssim, T* __restrict__ l1,
                  T* __restrict__ structure, T* __restrict__ slope) {
  double sum = 0, distance = 0;
  for (int64_t i = threadIdx.x; i < tiles.count(); i += kThreads) {
    if (sums) sum += sums[i];
    distance += distances[i];
  }
  sum = block_sum<0>(sum);
  distance = block_sum<1>(distance);
  if (threadIdx.x != 0) return;
  const ImageTerms terms = counts.terms(tiles, dssim);
  *l1 = T(terms.l1(distance));
  *structure = sums ? T(terms.dssim(windows ? *windows : double(tiles.height) * tiles.width, sum)) : T(0);
  *slope = T(terms.by_distance);
}

// The gradient by the terms' gradients (null: 0), which are equal as a rule: then nothing else is read.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    scaled_gradient(const T* __restrict__ l1, const T* __restrict__ dssim, const T* __restrict__ grad,
                    const T* __restrict__ slope, const T* __restrict__ img1, const T* __restrict__ img2,
                    const Counts<T> counts, int64_t values, int64_t pixels, T* __restrict__ result) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= values) return;
  const T by_l1 = l1 ? *l1 : T(0), by_dssim = dssim ? *dssim : T(0);
  T value = by_dssim * grad[i];
  if (by_l1 != by_dssim) {
    const T change = (by_l1 - by_dssim) * *slope * sign(img1[i] - img2[i]);
    value += counts.masked(i % pixels, counts.weighted(i % pixels, change));
  }
  result[i] = value;
}

// The arguments where the kernels can read them.
template <typename T>
struct Inputs {
  at::Tensor x, y, w, m;

  Inputs(const at::Tensor& render, const at::Tensor& target, const Weights& weights, const Weights& mask)
      : x(render.contiguous()), y(target.contiguous()), w(weights ? weights->contiguous() : at::Tensor()),
        m(mask ? mask->contiguous() : at::Tensor()) {}

  static const T* data(const at::Tensor& tensor) { return tensor.defined() ? tensor.const_data_ptr<T>() : nullptr; }
};

struct Terms {
  at::Tensor l1, dssim, grad, slope;
};

template <typename T>
Terms image_loss_as(const Inputs<T>& in, double dssim, bool train) {
  const Tiles tiles = tiles_of<T>(in.x, 0);
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  const auto doubles = in.x.options().dtype(at::kDouble);
  const at::Tensor windows = in.w.defined() ? at::sum(in.w, at::kDouble) : at::Tensor();
  const at::Tensor total = !in.m.defined() ? windows : at::sum(in.w.defined() ? at::mul(in.w, in.m) : in.m, at::kDouble);
  const double* const windows_data = windows.defined() ? windows.const_data_ptr<double>() : nullptr;
  const Counts<T> counts{in.data(in.w), in.data(in.m), total.defined() ? total.const_data_ptr<double>() : nullptr};
  const Terms terms{at::empty({}, in.x.options()), at::empty({}, in.x.options()),
                    train ? at::empty_like(in.x) : at::Tensor(), at::empty({}, in.x.options())};
  const at::Tensor sums = at::empty({2, tiles.count()}, doubles);
  double *const sum = sums.mutable_data_ptr<double>(), *const distance = sum + tiles.count();
  const T *const img1 = in.data(in.x), *const img2 = in.data(in.y);
  T* const grad = train ? terms.grad.template mutable_data_ptr<T>() : nullptr;
  const Window<T> window;
  if (dssim == 0) {
    launch(tile_distances<T>, tiles.count(), kThreads, stream, img1, img2, tiles, counts, distance, grad);
  } else if (train) {
    const at::Tensor maps = at::empty({3, tiles.planes, tiles.height, tiles.width}, in.x.options());
    T* const partials = maps.mutable_data_ptr<T>();
    launch(tile_sums<T, true, true>, tiles.count(), kThreads, stream, img1, img2, counts.weights, tiles, window, sum, partials,
           counts.mask, distance);
    launch(gradient<T, true>, tiles.count(), kThreads, stream, img1, img2, partials, tiles, window, T(0), nullptr, grad, counts,
           dssim);
  } else {
    launch(tile_sums<T, false, true>, tiles.count(), kThreads, stream, img1, img2, counts.weights, tiles, window, sum, nullptr,
           counts.mask, distance);
  }
  launch(terms_of_sums<T>, 1, kThreads, stream, dssim == 0 ? nullptr : sum, distance, tiles, counts, windows_data, dssim,
         terms.l1.template mutable_data_ptr<T>(), terms.dssim.template mutable_data_ptr<T>(),
         terms.slope.template mutable_data_ptr<T>());
  return terms;
}

Terms run_image_loss(const at::Tensor& render, const at::Tensor& target, double dssim, const Weights& weights,
                     const Weights& mask, bool train) {
  check_image_loss(render, target, dssim, weights, mask);
  const c10::cuda::CUDAGuard guard(render.device());
  return render.scalar_type() == at::kFloat ? image_loss_as<float>({render, target, weights, mask}, dssim, train)
                                            : image_loss_as<double>({render, target, weights, mask}, dssim, train);
}

std::tuple<at::Tensor, at::Tensor> image_loss(const at::Tensor& render, const at::Tensor& target, double dssim,
                                              const Weights& weights, const Weights& mask) {
  const Terms terms = run_image_loss(render, target, dssim, weights, mask, false);
  return {terms.l1, terms.dssim};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> image_loss_with_grad(const at::Tensor& render,
                                                                                const at::Tensor& target, double dssim,
                                                                                const Weights& weights, const Weights& mask) {
  const Terms terms = run_image_loss(render, target, dssim, weights, mask, true);
  return {terms.l1, terms.dssim, terms.grad, terms.slope};
}

template <typename T>
at::Tensor backward_as(const Upstream& l1, const Upstream& dssim, const at::Tensor& gradient, const at::Tensor& slope,
                       const Inputs<T>& in) {
  const at::Tensor grad = gradient.contiguous();
  at::Tensor result = at::empty_like(in.x);
  const int64_t values = grad.numel(), pixels = grad.size(1) * grad.size(2);
  launch(scaled_gradient<T>, (values + kThreads - 1) / kThreads, kThreads, c10::cuda::getCurrentCUDAStream(),
         l1 ? l1->const_data_ptr<T>() : nullptr, dssim ? dssim->const_data_ptr<T>() : nullptr, in.data(grad), in.data(slope),
         in.data(in.x), in.data(in.y), Counts<T>{in.data(in.w), in.data(in.m), nullptr}, values, pixels,
         result.mutable_data_ptr<T>());
  return result;
}

at::Tensor image_loss_backward(const Upstream& l1, const Upstream& dssim, const at::Tensor& grad, const at::Tensor& slope,
                               const at::Tensor& render, const at::Tensor& target, const Weights& weights,
                               const Weights& mask) {
  check_image_loss_backward(l1, dssim, grad, slope, render, target, weights, mask);
  const c10::cuda::CUDAGuard guard(render.device());
  return render.scalar_type() == at::kFloat
             ? backward_as<float>(l1, dssim, grad, slope, {render, target, weights, mask})
             : backward_as<double>(l1, dssim, grad, slope, {render, target, weights, mask});
}

}  // namespace
}  // namespace fused_ssim

TORCH_LIBRARY_IMPL(fused_ssim, CUDA, m) {
  m.impl("image_loss", fused_ssim::image_loss);
  m.impl("image_loss_with_grad", fused_ssim::image_loss_with_grad);
  m.impl("image_loss_backward", fused_ssim::image_loss_backward);
}
