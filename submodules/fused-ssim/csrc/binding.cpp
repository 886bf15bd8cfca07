// The operators' schemas. Drivers register themselves per device (csrc/cpu, csrc/cuda).
#include <torch/library.h>

TORCH_LIBRARY(fused_ssim, m) {
  // img1, img2 [B,C,H,W] -> mean SSIM, a scalar. weights: [H,W] of the SSIM map, at least 0, for all planes; none: ones.
  m.def("mean_ssim(Tensor img1, Tensor img2, bool valid, Tensor? weights=None) -> Tensor");
  // The same, and the gradient of the mean for img1 [B,C,H,W].
  m.def("mean_ssim_with_grad(Tensor img1, Tensor img2, bool valid, Tensor? weights=None) -> (Tensor, Tensor)");
}
