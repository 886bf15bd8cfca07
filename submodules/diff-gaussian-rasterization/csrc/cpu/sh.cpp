// Driver of common/sh.h: one direction at a time; the coefficients stream through once.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <tuple>

#include "../common/sh.h"
#include "../args.h"
#include "parallel.h"

namespace dgr {
namespace {

using at::Tensor;

constexpr int64_t kGrain = 4096;
constexpr int kMaxBasis = sh_count(kMaxShDegree);

template <class S> void sh_all(int degree, const S* dirs, const S* sh, int64_t n, int64_t coefficients, int64_t channels, S* out) {
  parallel_ranges(n, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t g = begin; g < end; ++g) {
      S inverse, basis[kMaxBasis];
      sh_basis(degree, normalize(Vec3<S>{dirs[3 * g], dirs[3 * g + 1], dirs[3 * g + 2]}, inverse), basis);
      const S* row = sh + g * coefficients * channels;
      for (int64_t c = 0; c < channels; ++c) {
        S color = 0;
        for (int k = 0; k < sh_count(degree); ++k) color += basis[k] * row[k * channels + c];
        out[g * channels + c] = color;
      }
    }
  });
}

template <class S>
void sh_vjp_all(int degree, const S* grad, const S* dirs, const S* sh, int64_t n, int64_t coefficients, int64_t channels, S* grad_dirs, S* grad_sh) {
  parallel_ranges(n, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t g = begin; g < end; ++g) {
      S inverse, basis[kMaxBasis], basis_grad[kMaxBasis] = {};
      const Vec3<S> unit = normalize(Vec3<S>{dirs[3 * g], dirs[3 * g + 1], dirs[3 * g + 2]}, inverse);
      sh_basis(degree, unit, basis);
      const S *row = sh + g * coefficients * channels, *in = grad + g * channels;
      S* out = grad_sh + g * coefficients * channels;
      for (int k = 0; k < coefficients; ++k)
        for (int64_t c = 0; c < channels; ++c) {
          const bool used = k < sh_count(degree);
          out[k * channels + c] = used ? basis[k] * in[c] : S(0);
          if (used) basis_grad[k] += row[k * channels + c] * in[c];
        }
      const Vec3<S> d = normalize_vjp(unit, inverse, sh_basis_vjp(degree, unit, basis_grad));
      grad_dirs[3 * g] = d.x, grad_dirs[3 * g + 1] = d.y, grad_dirs[3 * g + 2] = d.z;
    }
  });
}

Tensor sh_cpu(int64_t degree, const Tensor& dirs, const Tensor& sh) {
  check_sh(degree, dirs, sh);
  const Tensor d = dirs.contiguous(), s = sh.contiguous();
  Tensor out = at::empty({d.size(0), s.size(2)}, d.options());
  on_scalar(d, [&](auto tag) {
    using S = decltype(tag);
    sh_all<S>(int(degree), d.const_data_ptr<S>(), s.const_data_ptr<S>(), d.size(0), s.size(1), s.size(2), out.data_ptr<S>());
  });
  return out;
}

std::tuple<Tensor, Tensor> sh_backward_cpu(const Tensor& grad, int64_t degree, const Tensor& dirs, const Tensor& sh) {
  check_sh(degree, dirs, sh);
  const Tensor g = grad.contiguous(), d = dirs.contiguous(), s = sh.contiguous();
  Tensor grad_dirs = at::empty(d.sizes(), d.options()), grad_sh = at::empty(s.sizes(), s.options());
  on_scalar(d, [&](auto tag) {
    using S = decltype(tag);
    sh_vjp_all<S>(int(degree), g.const_data_ptr<S>(), d.const_data_ptr<S>(), s.const_data_ptr<S>(), d.size(0), s.size(1), s.size(2),
                  grad_dirs.data_ptr<S>(), grad_sh.data_ptr<S>());
  });
  return {grad_dirs, grad_sh};
}

}  // namespace

TORCH_LIBRARY_IMPL(diff_gaussian_rasterization, CPU, m) {
  m.impl("spherical_harmonics", &sh_cpu);
  m.impl("spherical_harmonics_backward", &sh_backward_cpu);
}

}  // namespace dgr
