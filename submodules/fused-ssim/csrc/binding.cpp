// The operators' schemas. Drivers register themselves per device (csrc/cpu, csrc/cuda).
#include <torch/library.h>

TORCH_LIBRARY(fused_ssim, m) {
  // img1, img2 [B,C,H,W] -> mean SSIM, a scalar.
  m.def("mean_ssim(Tensor img1, Tensor img2, bool valid) -> Tensor");
  // The same, and the gradient of the mean for img1 [B,C,H,W].
  m.def("mean_ssim_with_grad(Tensor img1, Tensor img2, bool valid) -> (Tensor, Tensor)");
}
