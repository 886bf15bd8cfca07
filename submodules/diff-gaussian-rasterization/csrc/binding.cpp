// The operators and their schemas, for every device; ops.py adds shapes and gradients. G Gaussians, C channels,
// V drawn Gaussians (in depth order), P (tile, Gaussian) pairs.
#include <torch/library.h>

TORCH_LIBRARY(diff_gaussian_rasterization, m) {
  // -> means2d [G,2] px, conics [G,3], depths [G], radii int32 [G]; zeros where culled. `screen` [G,3] only receives a
  // gradient: that of means2d, in NDC units.
  m.def(
      "project(Tensor means, Tensor? scales, Tensor? quats, Tensor? cov3d, Tensor world_view, Tensor? screen, float fx, float fy, "
      "float cx, float cy, int width, int height, float scale_modifier, float near) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "project_backward(Tensor? grad_means2d, Tensor? grad_conics, Tensor? grad_depths, Tensor means, Tensor? scales, Tensor? quats, "
      "Tensor? cov3d, Tensor world_view, Tensor conics, Tensor radii, float fx, float fy, float cx, float cy, int width, int height, "
      "float scale_modifier, float near, bool need_view) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "visible_radii(Tensor means, Tensor? scales, Tensor? quats, Tensor? cov3d, Tensor world_view, float fx, float fy, float cx, "
      "float cy, int width, int height, float scale_modifier, float near) -> Tensor");
  // -> image [C,H,W], alpha [H,W], depth [H,W], and what the backward reads: records, order int32 [V], pair_start
  // int32 [V+1], tile_start int32 [tiles+1], lists int32 [2,P].
  m.def(
      "composite(Tensor means2d, Tensor conics, Tensor depths, Tensor radii, Tensor opacities, Tensor colors, Tensor background, "
      "int width, int height) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "composite_backward(Tensor? grad_image, Tensor? grad_alpha, Tensor? grad_depth, Tensor image, Tensor alpha, Tensor depth, "
      "Tensor records, Tensor order, Tensor pair_start, Tensor tile_start, Tensor lists, int gaussians) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("spherical_harmonics(int degree, Tensor dirs, Tensor sh) -> Tensor");
  m.def("spherical_harmonics_backward(Tensor grad, int degree, Tensor dirs, Tensor sh) -> (Tensor, Tensor)");
}
