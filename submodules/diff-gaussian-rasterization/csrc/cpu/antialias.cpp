// Driver of common/antialias.h.
#include "../common/antialias.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>

#include "../args.h"
#include "team.h"

namespace dgr {
namespace {

using at::Tensor;
using cpu_team::parallel_ranges;

constexpr int64_t kGrain = 8192;

Tensor antialias_cpu(const Tensor& conics, const Tensor& opacities) {
  check_antialias(conics, opacities);
  const Tensor k = conics.contiguous(), o = opacities.contiguous();
  Tensor out = at::empty(o.sizes(), o.options());
  on_scalar(k, [&](auto tag) {
    using S = decltype(tag);
    const S *conic = k.const_data_ptr<S>(), *opacity = o.const_data_ptr<S>();
    S* to = out.data_ptr<S>();
    parallel_ranges(k.size(0), kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t g = begin; g < end; ++g) to[g] = opacity[g] * compensation(conic + 3 * g);
    });
  });
  return out;
}

std::tuple<Tensor, Tensor> antialias_backward_cpu(const Tensor& grad, const Tensor& conics, const Tensor& opacities) {
  check_antialias(conics, opacities);
  check_rows(grad, "the gradient of opacities", conics.size(0), 1, conics);
  const Tensor g = grad.contiguous(), k = conics.contiguous(), o = opacities.contiguous();
  Tensor grad_conics = at::empty(k.sizes(), k.options()), grad_opacities = at::empty(o.sizes(), o.options());
  on_scalar(k, [&](auto tag) {
    using S = decltype(tag);
    const S *conic = k.const_data_ptr<S>(), *opacity = o.const_data_ptr<S>(), *in = g.const_data_ptr<S>();
    S *to_conic = grad_conics.data_ptr<S>(), *to_opacity = grad_opacities.data_ptr<S>();
    parallel_ranges(k.size(0), kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) to_opacity[i] = compensation_vjp(conic + 3 * i, opacity[i], in[i], to_conic + 3 * i);
    });
  });
  return {grad_conics, grad_opacities};
}

}  // namespace

TORCH_LIBRARY_IMPL(diff_gaussian_rasterization, CPU, m) {
  m.impl("antialias", &antialias_cpu);
  m.impl("antialias_backward", &antialias_backward_cpu);
}

}  // namespace dgr
