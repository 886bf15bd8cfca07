// common/sh.h, one direction at a time; the coefficients are read once.
#pragma once

#include "../../common/sh.h"
#include "standard.h"

namespace dgr {
inline namespace DGR_VARIANT {
namespace {

constexpr int kMaxBasis = sh_count(kMaxShDegree);

template <class S> void sh_all(int degree, const S* dirs, const S* sh, int64_t coefficients, int64_t channels, int64_t begin, int64_t end, S* out) {
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
}

template <class S>
void sh_vjp_all(int degree, const S* grad, const S* dirs, const S* sh, int64_t coefficients, int64_t channels, int64_t begin, int64_t end, S* grad_dirs, S* grad_sh) {
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
}

}  // namespace
}  // namespace DGR_VARIANT
}  // namespace dgr
