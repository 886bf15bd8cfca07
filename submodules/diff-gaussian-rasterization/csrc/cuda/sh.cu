// Driver of common/sh.h: one thread a direction. The degree is known when compiling, so the basis stays in registers.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include <tuple>
#include <type_traits>

#include "../args.h"
#include "../common/sh.h"
#include "launch.cuh"

namespace dgr {
namespace {

using at::Tensor;

template <class S, int Degree>
__global__ void __launch_bounds__(kThreads) sh_kernel(const S* __restrict__ dirs, const S* __restrict__ sh, int64_t n, int64_t coefficients,
                                                      int64_t channels, S* __restrict__ out) {
  const int64_t g = thread_index();
  if (g >= n) return;
  S inverse, basis[sh_count(Degree)];
  sh_basis(Degree, normalize(Vec3<S>{dirs[3 * g], dirs[3 * g + 1], dirs[3 * g + 2]}, inverse), basis);
  const S* row = sh + g * coefficients * channels;
  for (int64_t c = 0; c < channels; ++c) {
    S color = 0;
#pragma unroll
    for (int k = 0; k < sh_count(Degree); ++k) color += basis[k] * row[k * channels + c];
    out[g * channels + c] = color;
  }
}

template <class S, int Degree>
__global__ void __launch_bounds__(kThreads)
    sh_vjp_kernel(const S* __restrict__ grad, const S* __restrict__ dirs, const S* __restrict__ sh, int64_t n, int64_t coefficients,
                  int64_t channels, S* __restrict__ grad_dirs, S* __restrict__ grad_sh) {
  const int64_t g = thread_index();
  if (g >= n) return;
  constexpr int kCount = sh_count(Degree);
  S inverse, basis[kCount], basis_grad[kCount] = {};
  const Vec3<S> unit = normalize(Vec3<S>{dirs[3 * g], dirs[3 * g + 1], dirs[3 * g + 2]}, inverse);
  sh_basis(Degree, unit, basis);
  const int64_t first = g * coefficients * channels;
  for (int64_t c = 0; c < channels; ++c) {
    const S in = grad[g * channels + c];
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      const int64_t at = first + k * channels + c;
      basis_grad[k] += sh[at] * in;
      grad_sh[at] = basis[k] * in;
    }
    for (int64_t k = kCount; k < coefficients; ++k) grad_sh[first + k * channels + c] = 0;
  }
  const Vec3<S> d = normalize_vjp(unit, inverse, sh_basis_vjp(Degree, unit, basis_grad));
  grad_dirs[3 * g] = d.x, grad_dirs[3 * g + 1] = d.y, grad_dirs[3 * g + 2] = d.z;
}

template <class F> void on_degree(int64_t degree, const F& f) {
  switch (degree) {
    case 0: return f(std::integral_constant<int, 0>{});
    case 1: return f(std::integral_constant<int, 1>{});
    case 2: return f(std::integral_constant<int, 2>{});
    default: return f(std::integral_constant<int, 3>{});
  }
}

Tensor sh_cuda(int64_t degree, const Tensor& dirs, const Tensor& sh) {
  check_sh(degree, dirs, sh);
  const c10::cuda::CUDAGuard guard(dirs.device());
  const Tensor d = dirs.contiguous(), s = sh.contiguous();
  Tensor out = at::empty({d.size(0), s.size(2)}, d.options());
  on_scalar(d, [&](auto tag) {
    using S = decltype(tag);
    on_degree(degree, [&](auto known) {
      launch(sh_kernel<S, decltype(known)::value>, blocks_of(d.size(0)), data<S>(d), data<S>(s), d.size(0), s.size(1), s.size(2), data<S>(out));
    });
  });
  return out;
}

std::tuple<Tensor, Tensor> sh_backward_cuda(const Tensor& grad, int64_t degree, const Tensor& dirs, const Tensor& sh) {
  check_sh(degree, dirs, sh);
  check_sh_grad(grad, dirs, sh);
  const c10::cuda::CUDAGuard guard(dirs.device());
  const Tensor g = grad.contiguous(), d = dirs.contiguous(), s = sh.contiguous();
  Tensor grad_dirs = at::empty(d.sizes(), d.options()), grad_sh = at::empty(s.sizes(), s.options());
  on_scalar(d, [&](auto tag) {
    using S = decltype(tag);
    on_degree(degree, [&](auto known) {
      launch(sh_vjp_kernel<S, decltype(known)::value>, blocks_of(d.size(0)), data<S>(g), data<S>(d), data<S>(s), d.size(0), s.size(1), s.size(2),
             data<S>(grad_dirs), data<S>(grad_sh));
    });
  });
  return {grad_dirs, grad_sh};
}

}  // namespace

TORCH_LIBRARY_IMPL(diff_gaussian_rasterization, CUDA, m) {
  m.impl("spherical_harmonics", &sh_cuda);
  m.impl("spherical_harmonics_backward", &sh_backward_cuda);
}

}  // namespace dgr
