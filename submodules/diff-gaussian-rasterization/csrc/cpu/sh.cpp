// Driver of kernels/sh.h, and the choice of the kernels.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <tuple>

#include "../args.h"
#include "choose.h"
#include "kernels.h"
#include "team.h"

namespace dgr {
namespace {

using at::Tensor;
using cpu_team::parallel_ranges;

constexpr int64_t kGrain = 4096;

Tensor sh_cpu(int64_t degree, const Tensor& dirs, const Tensor& sh) {
  check_sh(degree, dirs, sh);
  const Tensor d = dirs.contiguous(), s = sh.contiguous();
  Tensor out = at::empty({d.size(0), s.size(2)}, d.options());
  on_scalar(d, [&](auto tag) {
    using S = decltype(tag);
    const auto& kernel = kernels().of(S{});
    parallel_ranges(d.size(0), kGrain, [&, coefficients = s.size(1), channels = s.size(2)](int64_t begin, int64_t end) {
      kernel.sh(int(degree), d.const_data_ptr<S>(), s.const_data_ptr<S>(), coefficients, channels, begin, end, out.data_ptr<S>());
    });
  });
  return out;
}

std::tuple<Tensor, Tensor> sh_backward_cpu(const Tensor& grad, int64_t degree, const Tensor& dirs, const Tensor& sh) {
  check_sh(degree, dirs, sh);
  check_sh_grad(grad, dirs, sh);
  const Tensor g = grad.contiguous(), d = dirs.contiguous(), s = sh.contiguous();
  Tensor grad_dirs = at::empty(d.sizes(), d.options()), grad_sh = at::empty(s.sizes(), s.options());
  on_scalar(d, [&](auto tag) {
    using S = decltype(tag);
    const auto& kernel = kernels().of(S{});
    parallel_ranges(d.size(0), kGrain, [&, coefficients = s.size(1), channels = s.size(2)](int64_t begin, int64_t end) {
      kernel.sh_vjp(int(degree), g.const_data_ptr<S>(), d.const_data_ptr<S>(), s.const_data_ptr<S>(), coefficients, channels, begin, end,
                    grad_dirs.data_ptr<S>(), grad_sh.data_ptr<S>());
    });
  });
  return {grad_dirs, grad_sh};
}

#if defined(CPU_KERNELS_BY_CPU)
constexpr const Kernels* kTables[] = {&kernels_v4, &kernels_v3};
#else
constexpr const Kernels* kTables[] = {&kernels_plain};
#endif

size_t chosen() {
  static const size_t variant = cpu_variants::choose("diff_gaussian_rasterization", cpu_variants::features(), cpu_variants::wanted());
  return variant;
}

std::string choice(const std::string& features, const std::string& wanted) {
  return cpu_variants::variants()[cpu_variants::choose("diff_gaussian_rasterization", features, wanted)].name;
}

}  // namespace

const Kernels& kernels() { return *kTables[chosen()]; }

// Here and not in binding.cpp, since they belong to the CPU build alone.
TORCH_LIBRARY_FRAGMENT(diff_gaussian_rasterization, m) {
  // Which variant runs here, and which would on a CPU with these features (separated by spaces).
  m.def("cpu_kernels() -> str", [] { return cpu_variants::variants()[chosen()].name; });
  m.def("cpu_kernels_for(str features, str wanted) -> str", &choice);
}

TORCH_LIBRARY_IMPL(diff_gaussian_rasterization, CPU, m) {
  m.impl("spherical_harmonics", &sh_cpu);
  m.impl("spherical_harmonics_backward", &sh_backward_cpu);
}

}  // namespace dgr
