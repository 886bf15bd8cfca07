// CUDA driver of the mean SSIM.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
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

// One block: the mean, from the tiles' sums. `total`: that of a plane's weights, which then takes the place of
// `pixels`, the number of a plane's pixels in the mean; or null.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    mean_of_sums(const double* __restrict__ sums, int64_t tiles, double planes, double pixels,
                 const double* __restrict__ total, T* __restrict__ mean) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < tiles; i += kThreads) sum += sums[i];
  sum = block_sum<0>(sum);
  if (threadIdx.x != 0) return;
  const double count = planes * (total ? *total : pixels);
  *mean = count == 0 ? T(1) : T(sum / count);  // nothing differs where nothing counts
}

template <typename T>
at::Tensor run_as(const at::Tensor& x, const at::Tensor& y, bool valid, const Weights& weights, at::Tensor* grad) {
  const Tiles tiles = tiles_of<T>(x, valid ? kRadius : 0);
  const double planes = double(tiles.planes);
  const double pixels = double(tiles.height - 2 * tiles.margin) * (tiles.width - 2 * tiles.margin);
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  const Window<T> window;
  const T *img1 = x.const_data_ptr<T>(), *img2 = y.const_data_ptr<T>();
  // The total stays on the device: the host does not wait for it.
  const at::Tensor w = weights ? weights->contiguous() : at::Tensor(), sum = weights ? at::sum(w, at::kDouble) : at::Tensor();
  const T* const weight = weights ? w.const_data_ptr<T>() : nullptr;
  const double* const total = weights ? sum.const_data_ptr<double>() : nullptr;
  at::Tensor mean = at::empty({}, x.options());
  at::Tensor sums = at::empty({tiles.count()}, x.options().dtype(at::kDouble));
  double* const tile_sum = sums.mutable_data_ptr<double>();
  if (grad) {
    at::Tensor maps = at::empty({3, tiles.planes, tiles.height, tiles.width}, x.options());
    T* const partials = maps.mutable_data_ptr<T>();
    *grad = at::empty_like(x);
    launch(tile_sums<T, true>, tiles.count(), kThreads, stream, img1, img2, weight, tiles, window, tile_sum, partials, nullptr,
           nullptr);
    launch(gradient<T>, tiles.count(), kThreads, stream, img1, img2, partials, tiles, window, T(1 / (planes * pixels)), total,
           grad->mutable_data_ptr<T>(), Counts<T>{}, 0.0);
  } else {
    launch(tile_sums<T, false>, tiles.count(), kThreads, stream, img1, img2, weight, tiles, window, tile_sum, nullptr,
           nullptr, nullptr);
  }
  launch(mean_of_sums<T>, 1, kThreads, stream, tile_sum, tiles.count(), planes, pixels, total,
         mean.mutable_data_ptr<T>());
  return mean;
}

at::Tensor run(const at::Tensor& img1, const at::Tensor& img2, bool valid, const Weights& weights, at::Tensor* grad) {
  check(img1, img2, valid, weights);
  const c10::cuda::CUDAGuard guard(img1.device());
  const at::Tensor x = img1.contiguous(), y = img2.contiguous();
  return x.scalar_type() == at::kFloat ? run_as<float>(x, y, valid, weights, grad)
                                       : run_as<double>(x, y, valid, weights, grad);
}

at::Tensor mean_ssim(const at::Tensor& img1, const at::Tensor& img2, bool valid, const Weights& weights) {
  return run(img1, img2, valid, weights, nullptr);
}

std::tuple<at::Tensor, at::Tensor> mean_ssim_with_grad(const at::Tensor& img1, const at::Tensor& img2, bool valid,
                                                       const Weights& weights) {
  at::Tensor grad;
  at::Tensor mean = run(img1, img2, valid, weights, &grad);
  return {mean, grad};
}

}  // namespace
}  // namespace fused_ssim

TORCH_LIBRARY_IMPL(fused_ssim, CUDA, m) {
  m.impl("mean_ssim", fused_ssim::mean_ssim);
  m.impl("mean_ssim_with_grad", fused_ssim::mean_ssim_with_grad);
}
