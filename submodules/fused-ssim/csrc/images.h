// Checks of the arguments, for every driver.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "common/ssim.h"

namespace fused_ssim {

using Weights = std::optional<at::Tensor>;
using Upstream = std::optional<at::Tensor>;

inline void check(const at::Tensor& img1, const at::Tensor& img2, bool valid, const Weights& weights) {
  TORCH_CHECK(img1.dim() == 4, "fused_ssim: img1 has ", img1.dim(), " dimensions, expected [B,C,H,W]");
  TORCH_CHECK(img1.sizes() == img2.sizes(), "fused_ssim: img2 has shape ", img2.sizes(), ", img1 ", img1.sizes());
  TORCH_CHECK(img1.scalar_type() == img2.scalar_type(), "fused_ssim: img2 is ", img2.scalar_type(), ", img1 ",
              img1.scalar_type());
  TORCH_CHECK(img1.device() == img2.device(), "fused_ssim: img2 is on ", img2.device(), ", img1 on ", img1.device());
  TORCH_CHECK(img1.scalar_type() == at::kFloat || img1.scalar_type() == at::kDouble, "fused_ssim: images are ",
              img1.scalar_type(), ", expected float32 or float64");
  const int64_t smallest = valid ? kTaps : 1;
  TORCH_CHECK(img1.numel() > 0 && img1.size(2) >= smallest && img1.size(3) >= smallest, "fused_ssim: images of shape ",
              img1.sizes(), " have no pixel to average; expected at least ", smallest, "x", smallest);
  if (!weights) return;
  const int64_t outside = valid ? 2 * kRadius : 0, height = img1.size(2) - outside, width = img1.size(3) - outside;
  TORCH_CHECK(weights->dim() == 2 && weights->size(0) == height && weights->size(1) == width, "fused_ssim: weights have shape ",
              weights->sizes(), ", expected [", height, ", ", width, "] as the SSIM map");
  TORCH_CHECK(weights->scalar_type() == img1.scalar_type(), "fused_ssim: weights are ", weights->scalar_type(), ", img1 is ",
              img1.scalar_type());
  TORCH_CHECK(weights->device() == img1.device(), "fused_ssim: weights are on ", weights->device(), ", img1 on ",
              img1.device());
}

// That `other` lies on render's device and has its dtype.
inline void check_kind(const char* name, const at::Tensor& other, const at::Tensor& render) {
  TORCH_CHECK(other.scalar_type() == render.scalar_type(), "fused_ssim: ", name, " is ", other.scalar_type(), ", render ",
              render.scalar_type());
  TORCH_CHECK(other.device() == render.device(), "fused_ssim: ", name, " is on ", other.device(), ", render on ",
              render.device());
}

inline void check_image_pair(const at::Tensor& render, const at::Tensor& target, const Weights& weights, const Weights& mask) {
  TORCH_CHECK(render.dim() == 3, "fused_ssim: render has ", render.dim(), " dimensions, expected [C,H,W]");
  TORCH_CHECK(render.scalar_type() == at::kFloat || render.scalar_type() == at::kDouble, "fused_ssim: render is ",
              render.scalar_type(), ", expected float32 or float64");
  TORCH_CHECK(render.numel() > 0, "fused_ssim: render of shape ", render.sizes(), " has no pixel");
  TORCH_CHECK(render.sizes() == target.sizes(), "fused_ssim: target has shape ", target.sizes(), ", render ", render.sizes());
  check_kind("target", target, render);
  const int64_t height = render.size(1), width = render.size(2);
  if (weights) {
    TORCH_CHECK(weights->dim() == 2 && weights->size(0) == height && weights->size(1) == width,
                "fused_ssim: weights have shape ", weights->sizes(), ", expected [", height, ", ", width, "]");
    check_kind("weights", *weights, render);
  }
  if (mask) {
    TORCH_CHECK(mask->dim() == 3 && mask->size(0) == 1 && mask->size(1) == height && mask->size(2) == width,
                "fused_ssim: mask has shape ", mask->sizes(), ", expected [1, ", height, ", ", width, "]");
    check_kind("mask", *mask, render);
  }
}

inline void check_image_loss(const at::Tensor& render, const at::Tensor& target, double dssim, const Weights& weights,
                             const Weights& mask) {
  check_image_pair(render, target, weights, mask);
  TORCH_CHECK(dssim >= 0 && dssim <= 1, "fused_ssim: dssim is ", dssim, ", expected 0 to 1");
}

inline void check_image_loss_backward(const Upstream& l1, const Upstream& dssim, const at::Tensor& grad,
                                      const at::Tensor& slope, const at::Tensor& render, const at::Tensor& target,
                                      const Weights& weights, const Weights& mask) {
  check_image_pair(render, target, weights, mask);
  TORCH_CHECK(grad.sizes() == render.sizes(), "fused_ssim: grad has shape ", grad.sizes(), ", render ", render.sizes());
  check_kind("grad", grad, render);
  const auto check_scalar = [&](const char* name, const at::Tensor& scalar) {
    TORCH_CHECK(scalar.dim() == 0, "fused_ssim: ", name, " has shape ", scalar.sizes(), ", expected a scalar");
    check_kind(name, scalar, render);
  };
  check_scalar("slope", slope);
  if (l1) check_scalar("the gradient of l1", *l1);
  if (dssim) check_scalar("the gradient of dssim", *dssim);
}

}  // namespace fused_ssim
