// Checks of the arguments, for every driver.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "common/ssim.h"

namespace fused_ssim {

using Weights = std::optional<at::Tensor>;

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

}  // namespace fused_ssim
