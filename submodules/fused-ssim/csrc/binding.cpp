// The operators' schemas. Drivers register themselves per device (csrc/cpu, csrc/cuda).
#include <torch/library.h>

TORCH_LIBRARY(fused_ssim, m) {
  // img1, img2 [B,C,H,W] -> mean SSIM, a scalar. weights: [H,W] of the SSIM map, at least 0, for all planes; none: ones.
  m.def("mean_ssim(Tensor img1, Tensor img2, bool valid, Tensor? weights=None) -> Tensor");
  // The same, and the gradient of the mean for img1 [B,C,H,W].
  m.def("mean_ssim_with_grad(Tensor img1, Tensor img2, bool valid, Tensor? weights=None) -> (Tensor, Tensor)");

  // The image loss of render and target [C,H,W]: (1 - dssim) * L1 and dssim * (1 - SSIM). weights: [H,W], at least 0. mask:
  // [1,H,W], 1 where a pixel counts, 0 where it is ignored. None: ones.
  m.def("image_loss(Tensor render, Tensor target, float dssim, Tensor? weights=None, Tensor? mask=None) -> (Tensor, Tensor)");
  // The same, the gradient of the sum of both for the render, and how much the first grows with the absolute difference of
  // a value that counts 1.
  m.def("image_loss_with_grad(Tensor render, Tensor target, float dssim, Tensor? weights=None, Tensor? mask=None) -> "
        "(Tensor, Tensor, Tensor, Tensor)");
  // The gradient for the render, from those of the two terms (none: 0) and what image_loss_with_grad gave. If the two are
  // equal, images, weights and mask are not read.
  m.def("image_loss_backward(Tensor? l1, Tensor? dssim, Tensor grad, Tensor slope, Tensor render, Tensor target, "
        "Tensor? weights=None, Tensor? mask=None) -> Tensor");
}
