// CPU driver: shares the bands of kernels/bands.h among the threads.
//
// The bands do not depend on the number of threads, and their sums are added in order: neither does the result.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <algorithm>
#include <string>
#include <tuple>
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

// The same of the products of two.
template <typename T>
double sum_of_products(const T* a, const T* b, int64_t count) {
  double sums[8] = {}, sum = 0;
  for (; count >= 8; count -= 8, a += 8, b += 8) {
    for (int i = 0; i < 8; ++i) sums[i] += double(a[i]) * double(b[i]);
  }
  for (int64_t i = 0; i < count; ++i) sums[i] += double(a[i]) * double(b[i]);
  for (double s : sums) sum += s;
  return sum;
}

// Over all planes; writes the gradient if it is wanted.
template <typename T>
Sums sum_over_planes(const Images<T>& images, int64_t planes) {
  const auto kernel = kTables[chosen()]->of(T{});
  std::vector<Sums> parts(planes * ((images.height + kBandRows - 1) / kBandRows));
  // A few ranges for each thread: a range has buffers of its own.
  const int64_t bands = int64_t(parts.size()), grain = std::max<int64_t>(1, bands / (4 * at::get_num_threads()));
  cpu_team::parallel_ranges(bands, grain, [&](int64_t begin, int64_t end) { kernel(images, begin, end, parts.data()); });
  Sums sums{0, 0};
  for (const Sums& part : parts) {
    sums.ssim += part.ssim;
    sums.distance += part.distance;
  }
  return sums;
}

template <typename T>
double mean_over_planes(const T* x, const T* y, int64_t planes, int64_t height, int64_t width, bool valid, const T* weights,
                        T* grad) {
  const int64_t margin = valid ? kRadius : 0, pixels = (height - 2 * margin) * (width - 2 * margin);
  const double count = double(planes) * (weights ? sum_of(weights, pixels) : double(pixels));
  const Images<T> images{x, y, height, width, valid, weights, count == 0 ? T(0) : T(1 / count), grad};
  const double sum = sum_over_planes(images, planes).ssim;
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

// As at::scalar_tensor and Tensor::item, which for one number call several operators.
at::Tensor scalar(double value, const at::Tensor& like) {
  at::Tensor result = at::empty({}, like.options());
  if (like.scalar_type() == at::kFloat) {
    *result.mutable_data_ptr<float>() = float(value);
  } else {
    *result.mutable_data_ptr<double>() = value;
  }
  return result;
}

double value_of(const at::Tensor& scalar) {
  return scalar.scalar_type() == at::kFloat ? *scalar.const_data_ptr<float>() : *scalar.const_data_ptr<double>();
}

struct ImageLoss {
  double l1, dssim, slope;
};

template <typename T>
ImageLoss image_loss_of(Images<T> images, int64_t planes, double dssim) {
  const T *const weights = images.weights, *const mask = images.mask;
  const int64_t pixels = images.height * images.width;
  const double windows = weights ? sum_of(weights, pixels) : double(pixels);
  const double counts = weights && mask ? sum_of_products(weights, mask, pixels) : mask ? sum_of(mask, pixels) : windows;
  const ImageTerms terms(double(planes), counts, dssim);
  images.scale = T(-terms.by_ssim);
  images.slope = T(terms.by_distance);
  images.similarity = dssim != 0;
  images.distance = true;
  const Sums sums = sum_over_planes(images, planes);
  return {terms.l1(sums.distance), terms.dssim(windows, sums.ssim), terms.by_distance};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> run_image_loss(const at::Tensor& render, const at::Tensor& target, double dssim,
                                                              const Weights& weights, const Weights& mask,
                                                              at::Tensor* grad) {
  check_image_loss(render, target, dssim, weights, mask);
  const at::Tensor x = render.contiguous(), y = target.contiguous();
  const at::Tensor w = weights ? weights->contiguous() : at::Tensor(), m = mask ? mask->contiguous() : at::Tensor();
  if (grad) *grad = at::empty_like(x);
  const auto loss = [&](auto zero) {
    using T = decltype(zero);
    Images<T> images{x.const_data_ptr<T>(), y.const_data_ptr<T>(), x.size(1), x.size(2), false,
                     weights ? w.const_data_ptr<T>() : nullptr, T(0), grad ? grad->mutable_data_ptr<T>() : nullptr};
    if (mask) images.mask = m.const_data_ptr<T>();
    return image_loss_of(images, x.size(0), dssim);
  };
  const ImageLoss found = x.scalar_type() == at::kFloat ? loss(float{}) : loss(double{});
  return {scalar(found.l1, x), scalar(found.dssim, x), grad ? scalar(found.slope, x) : at::Tensor()};
}

std::tuple<at::Tensor, at::Tensor> image_loss(const at::Tensor& render, const at::Tensor& target, double dssim,
                                              const Weights& weights, const Weights& mask) {
  const auto [l1, structure, slope] = run_image_loss(render, target, dssim, weights, mask, nullptr);
  return {l1, structure};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> image_loss_with_grad(const at::Tensor& render,
                                                                                const at::Tensor& target, double dssim,
                                                                                const Weights& weights, const Weights& mask) {
  at::Tensor grad;
  const auto [l1, structure, slope] = run_image_loss(render, target, dssim, weights, mask, &grad);
  return {l1, structure, grad, slope};
}

// to += factor * weight * mask * sign(x - y), for all planes; null: ones.
template <typename T>
void add_signs(const T* x, const T* y, const T* weights, const T* mask, int64_t planes, int64_t pixels, T factor, T* to) {
  cpu_team::parallel_ranges(planes * pixels, 1 << 15, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin, at = begin % pixels; i < end; ++i, at = at + 1 == pixels ? 0 : at + 1) {
      const T d = x[i] - y[i], counts = (weights ? weights[at] : T(1)) * (mask ? mask[at] : T(1));
      to[i] += counts == T(0) ? T(0) : factor * counts * T((d > T(0)) - (d < T(0)));
    }
  });
}

at::Tensor image_loss_backward(const Upstream& of_l1, const Upstream& of_dssim, const at::Tensor& grad, const at::Tensor& slope,
                               const at::Tensor& render, const at::Tensor& target, const Weights& weights,
                               const Weights& mask) {
  check_image_loss_backward(of_l1, of_dssim, grad, slope, render, target, weights, mask);
  const double l1 = of_l1 ? value_of(*of_l1) : 0, dssim = of_dssim ? value_of(*of_dssim) : 0;
  at::Tensor result = of_dssim ? at::mul(grad.contiguous(), *of_dssim) : at::zeros_like(grad, at::MemoryFormat::Contiguous);
  if (l1 == dssim) return result;
  const at::Tensor x = render.contiguous(), y = target.contiguous();
  const at::Tensor w = weights ? weights->contiguous() : at::Tensor(), m = mask ? mask->contiguous() : at::Tensor();
  const auto add = [&](auto zero) {
    using T = decltype(zero);
    add_signs<T>(x.const_data_ptr<T>(), y.const_data_ptr<T>(), weights ? w.const_data_ptr<T>() : nullptr,
                 mask ? m.const_data_ptr<T>() : nullptr, x.size(0), x.size(1) * x.size(2),
                 T((l1 - dssim) * value_of(slope)), result.mutable_data_ptr<T>());
  };
  x.scalar_type() == at::kFloat ? add(float{}) : add(double{});
  return result;
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
  m.impl("image_loss", fused_ssim::image_loss);
  m.impl("image_loss_with_grad", fused_ssim::image_loss_with_grad);
  m.impl("image_loss_backward", fused_ssim::image_loss_backward);
}
