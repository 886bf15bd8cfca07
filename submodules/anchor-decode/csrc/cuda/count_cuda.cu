// CUDA driver of common/count.h: one thread for a visible anchor. Each row is visible once, so nothing is added by two.
#include <ATen/core/Tensor.h>
#include <ATen/ops/cumsum.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "../arguments.h"
#include "launch.h"

namespace anchor_decode {
namespace {

constexpr int kBlock = 256;

// until: of the offsets, how many are kept up to and with each.
template <class T>
__global__ void __launch_bounds__(kBlock) count_kernel(const Counts<T> counts, const int64_t* __restrict__ until, int64_t anchors) {
  const int64_t m = int64_t(blockIdx.x) * kBlock + threadIdx.x;
  if (m < anchors) count_anchor(counts, m, m ? until[m * counts.offsets - 1] : 0);
}

template <class T>
void count_as(const Counted& a) {
  const int64_t anchors = a.visible.size(0);
  const at::Tensor until = at::cumsum(a.kept.reshape({-1}), 0);
  const Counts<T> counts = a.counts<T>();
  launch(count_kernel<T>, (anchors + kBlock - 1) / kBlock, kBlock, 0, c10::cuda::getCurrentCUDAStream(), counts, until.const_data_ptr<int64_t>(),
         anchors);
}

void count_view(const at::Tensor& visible, const at::Tensor& kept, const at::Tensor& neural, const at::Tensor& radii, const Optional& gradient,
                const at::Tensor& opacities, const at::Tensor& views, const at::Tensor& gradients, const at::Tensor& drawn) {
  const Counted given{visible, kept, neural, radii, gradient, opacities, views, gradients, drawn};
  given.check();
  const c10::cuda::CUDAGuard guard(opacities.device());
  if (opacities.scalar_type() == at::kFloat) count_as<float>(given.contiguous());
  else count_as<double>(given.contiguous());
}

}  // namespace
}  // namespace anchor_decode

TORCH_LIBRARY_IMPL(anchor_decode, CUDA, m) { m.impl("count_view", anchor_decode::count_view); }
