// Driver of common/antialias.h: one thread a Gaussian.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include <tuple>

#include "../args.h"
#include "../common/antialias.h"
#include "launch.cuh"

namespace dgr {
namespace {

using at::Tensor;

template <class S>
__global__ void __launch_bounds__(kThreads)
    antialias_kernel(const S* __restrict__ conics, const S* __restrict__ opacities, int64_t n, S* __restrict__ out) {
  const int64_t g = thread_index();
  if (g < n) out[g] = opacities[g] * compensation(conics + 3 * g);
}

template <class S>
__global__ void __launch_bounds__(kThreads)
    antialias_vjp_kernel(const S* __restrict__ grad, const S* __restrict__ conics, const S* __restrict__ opacities, int64_t n,
                         S* __restrict__ grad_conics, S* __restrict__ grad_opacities) {
  const int64_t g = thread_index();
  if (g < n) grad_opacities[g] = compensation_vjp(conics + 3 * g, opacities[g], grad[g], grad_conics + 3 * g);
}

Tensor antialias_cuda(const Tensor& conics, const Tensor& opacities) {
  check_antialias(conics, opacities);
  const c10::cuda::CUDAGuard guard(conics.device());
  const Tensor k = conics.contiguous(), o = opacities.contiguous();
  Tensor out = at::empty(o.sizes(), o.options());
  on_scalar(k, [&](auto tag) {
    using S = decltype(tag);
    launch(antialias_kernel<S>, blocks_of(k.size(0)), data<S>(k), data<S>(o), k.size(0), data<S>(out));
  });
  return out;
}

std::tuple<Tensor, Tensor> antialias_backward_cuda(const Tensor& grad, const Tensor& conics, const Tensor& opacities) {
  check_antialias(conics, opacities);
  check_rows(grad, "the gradient of opacities", conics.size(0), 1, conics);
  const c10::cuda::CUDAGuard guard(conics.device());
  const Tensor g = grad.contiguous(), k = conics.contiguous(), o = opacities.contiguous();
  Tensor grad_conics = at::empty(k.sizes(), k.options()), grad_opacities = at::empty(o.sizes(), o.options());
  on_scalar(k, [&](auto tag) {
    using S = decltype(tag);
    launch(antialias_vjp_kernel<S>, blocks_of(k.size(0)), data<S>(g), data<S>(k), data<S>(o), k.size(0), data<S>(grad_conics),
           data<S>(grad_opacities));
  });
  return {grad_conics, grad_opacities};
}

}  // namespace

TORCH_LIBRARY_IMPL(diff_gaussian_rasterization, CUDA, m) {
  m.impl("antialias", &antialias_cuda);
  m.impl("antialias_backward", &antialias_backward_cuda);
}

}  // namespace dgr
