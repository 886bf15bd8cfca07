// The operators and their schemas, for every device; ops.py adds shapes and gradients. G Gaussians, C channels,
// V drawn Gaussians (in depth order), P (tile, Gaussian) pairs.
#include <torch/library.h>

TORCH_LIBRARY(diff_gaussian_rasterization, m) {
  // -> means2d [G,2] px, conics [G,3], depths [G], radii int32 [G]; zeros where culled. `screen` [G,3] only receives a
  // gradient: that of means2d, in NDC units. `window` (x, y, width, height): the part of the image that is drawn; none: all.
  // `tiles`: as for composite; what can show in none of them is culled, too.
  m.def(
      "project(Tensor means, Tensor? scales, Tensor? quats, Tensor? cov3d, Tensor world_view, Tensor? screen, float fx, float fy, "
      "float cx, float cy, int width, int height, float scale_modifier, float near, int[]? window=None, Tensor? tiles=None) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "project_backward(Tensor? grad_means2d, Tensor? grad_conics, Tensor? grad_depths, Tensor means, Tensor? scales, Tensor? quats, "
      "Tensor? cov3d, Tensor world_view, Tensor conics, Tensor radii, float fx, float fy, float cx, float cy, int width, int height, "
      "float scale_modifier, float near, bool need_view) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "visible_radii(Tensor means, Tensor? scales, Tensor? quats, Tensor? cov3d, Tensor world_view, float fx, float fy, float cx, "
      "float cy, int width, int height, float scale_modifier, float near, int[]? window=None, Tensor? tiles=None) -> Tensor");
  // -> image [C,H,W], alpha [H,W], depth [H,W] of the window, and what the backward reads: records, order int32 [V],
  // pair_start int32 [V+1], tile_start int32 [tiles+1], lists int32 [2,P]. `width` and `height` are the image's. `tiles`
  // bool [ceil(H/16),ceil(W/16)]: the squares of 16x16 pixels, from the window's corner, that are drawn; none: all.
  // `absolute` [G,2] only receives a gradient: what absolute_gradient returns. The last `fixed` Gaussians get no gradients.
  // `capacity`: how many pairs a GPU expects, so that the host need not wait for their number before they are drawn; 0: it
  // waits. The same bits for every value.
  m.def(
      "composite(Tensor means2d, Tensor conics, Tensor depths, Tensor radii, Tensor opacities, Tensor colors, Tensor background, "
      "int width, int height, int[]? window=None, Tensor? tiles=None, Tensor? absolute=None, int fixed=0, int capacity=0) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  // `left`, `top`: the window's corner. Rows of the last `fixed` Gaussians are 0.
  m.def(
      "composite_backward(Tensor? grad_image, Tensor? grad_alpha, Tensor? grad_depth, Tensor image, Tensor alpha, Tensor depth, "
      "Tensor records, Tensor order, Tensor pair_start, Tensor tile_start, Tensor lists, int gaussians, int left=0, int top=0, Tensor? tiles=None, int fixed=0) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  // [G,2]: the sum over pixels of |what the pixel adds to the gradient of means2d|; arguments as for composite_backward,
  // for all Gaussians.
  m.def(
      "absolute_gradient(Tensor? grad_image, Tensor? grad_alpha, Tensor? grad_depth, Tensor image, Tensor alpha, Tensor depth, "
      "Tensor records, Tensor order, Tensor pair_start, Tensor tile_start, Tensor lists, int gaussians, int left=0, int top=0, Tensor? tiles=None) "
      "-> Tensor");
  // int32 [H,W]: the Gaussian behind which a pixel's transmittance is first 0.5 or less, -1 where there is none; tensors
  // as for composite_backward.
  m.def(
      "median(Tensor alpha, Tensor records, Tensor order, Tensor tile_start, Tensor lists, int left=0, int top=0) -> Tensor");
  // opacities [G,1] times the share that the low-pass filter in the conics leaves of them (common/antialias.h).
  m.def("antialias(Tensor conics, Tensor opacities) -> Tensor");
  m.def("antialias_backward(Tensor grad, Tensor conics, Tensor opacities) -> (Tensor, Tensor)");
  // A step of Adam on contiguous tensors [G,...]: rows where `visible` [G] is false are left as they are, moments and all.
  // `rates`: the learning rate of each tensor over the bias correction of its first moment; `roots2`: the root of the
  // bias correction of its second moment.
  m.def(
      "adam_update(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] moments, Tensor(c!)[] squares, Tensor? visible, float[] rates, "
      "float[] roots2, float beta1, float beta2, float eps) -> ()");
  m.def("spherical_harmonics(int degree, Tensor dirs, Tensor sh) -> Tensor");
  m.def("spherical_harmonics_backward(Tensor grad, int degree, Tensor dirs, Tensor sh) -> (Tensor, Tensor)");
}
