// CPU driver: shares the bands of kernels/bands.h among the threads.
//
// The bands do not depend on the number of threads, and their sums are added in order: neither does the result.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/scalar_tensor.h>
#include <torch/library.h>

#include <algorithm>
#include <string>
#include <vector>

#include "../common/ssim.h"
#include "../images.h"
#include "choose.h"
#include "kernels.h"
#include "team.h"

namespace fused_ssim {
namespace {

#if defined(CPU_KERNELS_BY_CPU)
constexpr const Kernels* kTables[] = {&kernels_v4, &kernels_v3};
#else
constexpr const Kernels* kTables[] = {&kernels_plain};
#endif

size_t chosen() {
  static const size_t variant = cpu_variants::choose("fused_ssim", cpu_variants::features(), cpu_variants::wanted());
  return variant;
}

std::string choice(const std::string& features, const std::string& wanted) {
  return cpu_variants::variants()[cpu_variants::choose("fused_ssim", features, wanted)].name;
}

// In one order for any number of threads, which at::sum does not keep. Eight sums: one would wait for each addition.
template <typename T>
double sum_of(const T* values, int64_t count) {
  double sums[8] = {}, sum = 0;
  for (; count >= 8; count -= 8, values += 8) {
    for (int i = 0; i < 8; ++i) sums[i] += double(values[i]);
  }
  for (int64_t i = 0; i < count; ++i) sums[i] += double(values[i]);
  for (double s : sums) sum += s;
  return sum;
}

template <typename T>
double mean_over_planes(const T* x, const T* y, int64_t planes, int64_t height, int64_t width, bool valid, const T* weights,
                        T* grad) {
  const int64_t margin = valid ? kRadius : 0, pixels = (height - 2 * margin) * (width - 2 * margin);
  const double count = double(planes) * (weights ? sum_of(weights, pixels) : double(pixels));
  const Images<T> images{x, y, height, width, valid, weights, count == 0 ? T(0) : T(1 / count), grad};
  const auto kernel = kTables[chosen()]->of(T{});
  std::vector<double> sums(planes * ((height + kBandRows - 1) / kBandRows));
  // A few ranges for each thread: a range has buffers of its own.
  const int64_t bands = int64_t(sums.size()), grain = std::max<int64_t>(1, bands / (4 * at::get_num_threads()));
  cpu_team::parallel_ranges(bands, grain, [&](int64_t begin, int64_t end) { kernel(images, begin, end, sums.data()); });
  double sum = 0;
  for (double s : sums) sum += s;
  return count == 0 ? 1 : sum / count;  // nothing differs where nothing counts
}

at::Tensor run(const at::Tensor& img1, const at::Tensor& img2, bool valid, const Weights& weights, at::Tensor* grad) {
  check(img1, img2, valid, weights);
  const at::Tensor x = img1.contiguous(), y = img2.contiguous(), w = weights ? weights->contiguous() : at::Tensor();
  if (grad) *grad = at::empty_like(x);
  const auto mean = [&](auto zero) {
    using T = decltype(zero);
    return mean_over_planes<T>(x.const_data_ptr<T>(), y.const_data_ptr<T>(), x.size(0) * x.size(1), x.size(2), x.size(3),
                               valid, weights ? w.const_data_ptr<T>() : nullptr,
                               grad ? grad->mutable_data_ptr<T>() : nullptr);
  };
  return at::scalar_tensor(x.scalar_type() == at::kFloat ? mean(float{}) : mean(double{}), x.options());
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

// Here and not in binding.cpp, since they belong to the CPU build alone.
TORCH_LIBRARY_FRAGMENT(fused_ssim, m) {
  // Which variant runs here, and which would on a CPU with these features (separated by spaces).
  m.def("cpu_kernels() -> str", [] { return cpu_variants::variants()[fused_ssim::chosen()].name; });
  m.def("cpu_kernels_for(str features, str wanted) -> str", &fused_ssim::choice);
}

TORCH_LIBRARY_IMPL(fused_ssim, CPU, m) {
  m.impl("mean_ssim", fused_ssim::mean_ssim);
  m.impl("mean_ssim_with_grad", fused_ssim::mean_ssim_with_grad);
}
