// Checks and small tensor helpers of the drivers. Messages for people are written in ops.py; these only guard
// memory when the raw operators are called.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/OptionalArrayRef.h>
#include <c10/util/Exception.h>

#include <limits>
#include <optional>

#include "common/sh.h"
#include "common/window.h"

namespace dgr {

// Pixels of an image's side: beyond 2^23 the centre of a pixel is no float, and indices of tiles shall be int32.
constexpr int64_t kMaxSide = 1 << 20;

inline std::optional<at::Tensor> contiguous(const std::optional<at::Tensor>& t) {
  return t ? std::optional<at::Tensor>(t->contiguous()) : std::nullopt;
}

inline void check_rows(const at::Tensor& t, const char* name, int64_t rows, int64_t columns, const at::Tensor& like) {
  TORCH_CHECK(t.dim() == 2 && t.size(0) == rows && t.size(1) == columns, "rasterize: ", name, " has shape ", t.sizes(), ", expected [",
              rows, ", ", columns, "]");
  TORCH_CHECK(t.scalar_type() == like.scalar_type() && t.device() == like.device(), "rasterize: ", name, " is ", t.scalar_type(), " on ",
              t.device(), ", expected ", like.scalar_type(), " on ", like.device(), " as means");
}

inline void check_shapes(const at::Tensor& means, const std::optional<at::Tensor>& scales, const std::optional<at::Tensor>& quats,
                         const std::optional<at::Tensor>& cov3d, const at::Tensor& world_view, int64_t width, int64_t height) {
  TORCH_CHECK(means.dim() == 2 && means.size(1) == 3, "rasterize: means has shape ", means.sizes(), ", expected [G, 3]");
  TORCH_CHECK(cov3d.has_value() != (scales.has_value() && quats.has_value()) && scales.has_value() == quats.has_value(),
              "rasterize: give scales and quats, or cov3d");
  const int64_t n = means.size(0);
  if (scales) check_rows(*scales, "scales", n, 3, means);
  if (quats) check_rows(*quats, "quats", n, 4, means);
  if (cov3d) check_rows(*cov3d, "cov3d", n, 6, means);
  check_rows(world_view, "world_view", 4, 4, means);
  TORCH_CHECK(width > 0 && height > 0, "rasterize: image of ", width, "x", height, " pixels");
}

inline void check_projected(const at::Tensor& means, const at::Tensor& conics, const at::Tensor& radii,
                            const std::optional<at::Tensor>& grad_means2d, const std::optional<at::Tensor>& grad_conics,
                            const std::optional<at::Tensor>& grad_depths) {
  const int64_t n = means.size(0);
  check_rows(conics, "conics", n, 3, means);
  TORCH_CHECK(radii.numel() == n && radii.scalar_type() == at::kInt && radii.device() == means.device(),
              "rasterize: radii has shape ", radii.sizes(), ", expected int32 [", n, "] on ", means.device());
  if (grad_means2d) check_rows(*grad_means2d, "the gradient of means2d", n, 2, means);
  if (grad_conics) check_rows(*grad_conics, "the gradient of conics", n, 3, means);
  if (grad_depths) check_rows(grad_depths->unsqueeze(-1), "the gradient of depths", n, 1, means);
}

inline void check_indices(const at::Tensor& t, const char* name, at::IntArrayRef shape, const at::Tensor& like) {
  TORCH_CHECK(t.sizes() == shape && t.scalar_type() == at::kInt && t.device() == like.device(), "rasterize: ", name, " is ", t.scalar_type(),
              " ", t.sizes(), " on ", t.device(), ", expected int32 ", shape, " on ", like.device());
}

// Checks that the tensors which the backward pass reads have sizes that fit together. `tiles`, `stride`: as the driver's
// forward pass makes them. Values of the indices are not checked, as that would wait for the device: see check_lists.
inline void check_composed(const std::optional<at::Tensor>& grad_image, const std::optional<at::Tensor>& grad_alpha,
                           const std::optional<at::Tensor>& grad_depth, const at::Tensor& image, const at::Tensor& alpha,
                           const at::Tensor& depth, const at::Tensor& records, const at::Tensor& order, const at::Tensor& pair_start,
                           const at::Tensor& tile_start, const at::Tensor& lists, int64_t gaussians, int64_t tiles, int64_t stride) {
  const int64_t height = image.size(1), width = image.size(2), drawn = order.numel();
  if (grad_image)
    TORCH_CHECK(grad_image->sizes() == image.sizes() && grad_image->scalar_type() == image.scalar_type() &&
                    grad_image->device() == image.device(),
                "rasterize: the gradient of the image has shape ", grad_image->sizes(), ", expected ", image.sizes());
  for (const auto* plane : {&alpha, &depth}) check_rows(*plane, "alpha or depth", height, width, image);
  for (const auto* plane : {&grad_alpha, &grad_depth})
    if (*plane) check_rows(**plane, "the gradient of alpha or depth", height, width, image);
  TORCH_CHECK(gaussians >= drawn && gaussians <= std::numeric_limits<int32_t>::max(), "rasterize: order has ", drawn,
              " Gaussians, of ", gaussians, " in all");
  check_rows(records, "records", drawn, stride, image);
  check_indices(order, "order", {drawn}, image);
  check_indices(pair_start, "pair_start", {drawn + 1}, image);
  check_indices(tile_start, "tile_start", {tiles + 1}, image);
  check_indices(lists, "lists", {2, lists.numel() / 2}, image);
}

// The same for an operator that only reads the lists: `plane` [H,W] has the size, dtype and device.
inline void check_walked(const at::Tensor& plane, const at::Tensor& records, const at::Tensor& order, const at::Tensor& tile_start,
                         const at::Tensor& lists, int64_t tiles, int64_t least_stride) {
  TORCH_CHECK(records.dim() == 2 && records.size(1) >= least_stride, "rasterize: records has shape ", records.sizes(), ", expected [", order.numel(),
              ", at least ", least_stride, "]");
  check_rows(records, "records", order.numel(), records.size(1), plane);
  check_indices(order, "order", {order.numel()}, plane);
  check_indices(tile_start, "tile_start", {tiles + 1}, plane);
  check_indices(lists, "lists", {2, lists.numel() / 2}, plane);
}

// The part of the image that an operator on drawn planes is given.
inline Window window_of_size(int64_t width, int64_t height, int64_t left, int64_t top) {
  TORCH_CHECK(left >= 0 && top >= 0 && left <= kMaxSide - width && top <= kMaxSide - height, "rasterize: window of ", width, "x", height,
              " pixels at (", left, ", ", top, "), expected one inside of an image of at most ", kMaxSide, "x", kMaxSide, " pixels");
  return {left, top, width, height};
}

inline Window window_of_image(const at::Tensor& image, int64_t left, int64_t top) {
  TORCH_CHECK(image.dim() == 3 && image.numel() > 0, "rasterize: image has shape ", image.sizes(), ", expected [C, H, W]");
  return window_of_size(image.size(2), image.size(1), left, top);
}

inline Window window_of_plane(const at::Tensor& plane, int64_t left, int64_t top) {
  TORCH_CHECK(plane.dim() == 2 && plane.numel() > 0, "rasterize: alpha has shape ", plane.sizes(), ", expected [H, W]");
  return window_of_size(plane.size(1), plane.size(0), left, top);
}

inline bool all_below(const at::Tensor& t, int64_t begin, int64_t end, int64_t limit) {
  const int32_t* at = t.const_data_ptr<int32_t>();
  bool good = true;
  for (int64_t i = begin; i < end; ++i) good &= uint32_t(at[i]) < uint32_t(limit);
  return good;
}

inline void check_rises(const at::Tensor& starts, const char* name, int64_t pairs) {
  const int32_t* at = starts.const_data_ptr<int32_t>();
  bool good = at[0] >= 0 && at[starts.numel() - 1] <= pairs;
  for (int64_t i = 1; i < starts.numel(); ++i) good &= at[i - 1] <= at[i];
  TORCH_CHECK(good, "rasterize: ", name, " falls, or passes the ", pairs, " pairs of the lists");
}

// The ranks in the list of every tile.
inline void check_ranks(const at::Tensor& tile_start, const at::Tensor& lists, int64_t drawn) {
  const int64_t pairs = lists.size(1);
  check_rises(tile_start, "tile_start", pairs);
  TORCH_CHECK(all_below(lists, 0, pairs, drawn), "rasterize: lists name a rank that is not one of ", drawn);
}

// The values of the lists, where they can be read without waiting for a device.
inline void check_lists(const at::Tensor& order, const at::Tensor& pair_start, const at::Tensor& tile_start, const at::Tensor& lists,
                        int64_t gaussians) {
  const int64_t pairs = lists.size(1);
  TORCH_CHECK(all_below(order, 0, order.numel(), gaussians), "rasterize: order names a Gaussian that is not one of ", gaussians);
  check_rises(pair_start, "pair_start", pairs);
  check_ranks(tile_start, lists, order.numel());
  TORCH_CHECK(all_below(lists, pairs, 2 * pairs, pairs), "rasterize: lists name a pair that is not one of ", pairs);
}

inline void check_composite(const at::Tensor& means2d, const at::Tensor& conics, const at::Tensor& depths, const at::Tensor& radii,
                            const at::Tensor& opacities, const at::Tensor& colors, const at::Tensor& background, int64_t width, int64_t height) {
  TORCH_CHECK(means2d.dim() == 2 && means2d.size(1) == 2, "rasterize: means2d has shape ", means2d.sizes(), ", expected [G, 2]");
  const int64_t n = means2d.size(0);
  check_rows(conics, "conics", n, 3, means2d);
  check_rows(opacities, "opacities", n, 1, means2d);
  TORCH_CHECK(colors.dim() == 2 && colors.size(1) > 0, "rasterize: colors has shape ", colors.sizes(), ", expected [G, C]");
  check_rows(colors, "colors", n, colors.size(1), means2d);
  TORCH_CHECK(depths.numel() == n && radii.numel() == n && radii.scalar_type() == at::kInt && depths.scalar_type() == means2d.scalar_type() &&
                  depths.device() == means2d.device() && radii.device() == means2d.device(),
              "rasterize: depths and radii (int32) need one entry for each of ", n, " Gaussians, on ", means2d.device());
  TORCH_CHECK(background.dim() == 1 && background.size(0) == colors.size(1) && background.scalar_type() == means2d.scalar_type() &&
                  background.device() == means2d.device(),
              "rasterize: background has shape ", background.sizes(), " on ", background.device(), ", expected [", colors.size(1),
              "] as colors has channels, on ", means2d.device());
  TORCH_CHECK(width > 0 && height > 0 && width <= kMaxSide && height <= kMaxSide, "rasterize: image of ", width, "x", height, " pixels");
  TORCH_CHECK(n <= std::numeric_limits<int32_t>::max(), "rasterize: ", n, " Gaussians, at most 2^31 - 1");
}

// The window that an operator was given; the whole image if none was given.
inline Window window_of(at::OptionalIntArrayRef window, int64_t width, int64_t height) {
  if (!window) return {0, 0, width, height};
  const at::IntArrayRef w = *window;
  TORCH_CHECK(w.size() == 4 && w[0] >= 0 && w[1] >= 0 && w[2] > 0 && w[3] > 0 && w[2] <= width && w[3] <= height && w[0] <= width - w[2] &&
                  w[1] <= height - w[3],
              "rasterize: window is ", w, ", expected [x, y, width, height] inside of an image of ", width, "x", height, " pixels");
  return {w[0], w[1], w[2], w[3]};
}

inline void check_tiles(const std::optional<at::Tensor>& tiles, int64_t width, int64_t height, const at::Tensor& like) {
  if (!tiles) return;
  const int64_t rows = (height + kSquare - 1) / kSquare, columns = (width + kSquare - 1) / kSquare;
  TORCH_CHECK(tiles->dim() == 2 && tiles->size(0) == rows && tiles->size(1) == columns && tiles->scalar_type() == at::kBool &&
                  tiles->device() == like.device(),
              "rasterize: tiles is ", tiles->scalar_type(), " ", tiles->sizes(), " on ", tiles->device(), ", expected bool [", rows, ", ", columns,
              "] on ", like.device());
}

inline Squares squares_of(const std::optional<at::Tensor>& tiles) {
  if (!tiles) return {nullptr, 0, 0};
  return {tiles->const_data_ptr<bool>(), int(tiles->size(1)), int(tiles->size(0))};
}

inline void check_fixed(int64_t fixed, int64_t gaussians) {
  TORCH_CHECK(fixed >= 0 && fixed <= gaussians, "rasterize: fixed is ", fixed, ", expected 0 to ", gaussians, ", the number of Gaussians");
}

inline void check_capacity(int64_t capacity) { TORCH_CHECK(capacity >= 0, "rasterize: capacity is ", capacity, ", expected 0 pairs or more"); }

inline void check_pairs(int64_t pairs) {
  TORCH_CHECK(pairs <= std::numeric_limits<int32_t>::max(), "rasterize: ", pairs,
              " (tile, Gaussian) pairs, at most 2^31 - 1 can be drawn; render a smaller image or fewer Gaussians");
}

inline void check_antialias(const at::Tensor& conics, const at::Tensor& opacities) {
  TORCH_CHECK(conics.dim() == 2 && conics.size(1) == 3, "rasterize: conics has shape ", conics.sizes(), ", expected [G, 3]");
  check_rows(opacities, "opacities", conics.size(0), 1, conics);
}

// The tensors of a step of Adam, which are written where they lie.
inline void check_adam(at::TensorList params, at::TensorList grads, at::TensorList moments, at::TensorList squares,
                       const std::optional<at::Tensor>& visible, at::ArrayRef<double> rates, at::ArrayRef<double> roots2) {
  const size_t n = params.size();
  TORCH_CHECK(grads.size() == n && moments.size() == n && squares.size() == n && rates.size() == n && roots2.size() == n, "adam_update: ", n,
              " parameters, expected as many gradients, moments, squares, rates and roots2, found ", grads.size(), ", ", moments.size(), ", ",
              squares.size(), ", ", rates.size(), " and ", roots2.size());
  for (size_t i = 0; i < n; ++i) {
    const at::Tensor& param = params[i];
    TORCH_CHECK(param.scalar_type() == at::kFloat || param.scalar_type() == at::kDouble, "adam_update: parameter ", i, " is ",
                param.scalar_type(), ", expected float32 or float64");
    TORCH_CHECK(param.dim() > 0 && param.device() == params[0].device() && (!visible || param.size(0) == visible->size(0)),
                "adam_update: parameter ", i, " has shape ", param.sizes(), " on ", param.device(), ", expected rows on ", params[0].device(),
                ", as many as visible has entries");
    for (const at::Tensor* other : {&param, &grads[i], &moments[i], &squares[i]})
      TORCH_CHECK(other->sizes() == param.sizes() && other->scalar_type() == param.scalar_type() && other->device() == param.device() &&
                      other->is_contiguous(),
                  "adam_update: a gradient or moment of parameter ", i, " is ", other->scalar_type(), " ", other->sizes(), " on ",
                  other->device(), ", expected contiguous ", param.scalar_type(), " ", param.sizes(), " on ", param.device());
  }
}

inline void check_visible(const std::optional<at::Tensor>& visible, at::TensorList params) {
  TORCH_CHECK(!visible || (visible->dim() == 1 && visible->scalar_type() == at::kBool && visible->is_contiguous() &&
                           (params.empty() || visible->device() == params[0].device())),
              "adam_update: visible is ", visible->scalar_type(), " ", visible->sizes(), " on ", visible->device(), ", expected contiguous bool [G]");
}

inline void check_sh(int64_t degree, const at::Tensor& dirs, const at::Tensor& sh) {
  TORCH_CHECK(degree >= 0 && degree <= kMaxShDegree, "spherical_harmonics: degree ", degree, ", expected 0 to ", kMaxShDegree);
  TORCH_CHECK(dirs.dim() == 2 && dirs.size(1) == 3, "spherical_harmonics: dirs has shape ", dirs.sizes(), ", expected [G, 3]");
  TORCH_CHECK(sh.dim() == 3 && sh.size(0) == dirs.size(0) && sh.size(1) >= sh_count(int(degree)), "spherical_harmonics: sh has shape ",
              sh.sizes(), ", expected [", dirs.size(0), ", at least ", sh_count(int(degree)), ", C]");
  TORCH_CHECK(sh.scalar_type() == dirs.scalar_type() && sh.device() == dirs.device(), "spherical_harmonics: sh is ", sh.scalar_type(), " on ",
              sh.device(), ", dirs ", dirs.scalar_type(), " on ", dirs.device());
}

inline void check_sh_grad(const at::Tensor& grad, const at::Tensor& dirs, const at::Tensor& sh) {
  TORCH_CHECK(grad.dim() == 2 && grad.size(0) == dirs.size(0) && grad.size(1) == sh.size(2), "spherical_harmonics: the gradient has shape ",
              grad.sizes(), ", expected [", dirs.size(0), ", ", sh.size(2), "]");
  TORCH_CHECK(grad.scalar_type() == dirs.scalar_type() && grad.device() == dirs.device(), "spherical_harmonics: the gradient is ",
              grad.scalar_type(), " on ", grad.device(), ", dirs ", dirs.scalar_type(), " on ", dirs.device());
}

// Calls f with a value of the tensor's scalar type.
template <class F> void on_scalar(const at::Tensor& t, const F& f) {
  if (t.scalar_type() == at::kFloat) f(float{});
  else if (t.scalar_type() == at::kDouble) f(double{});
  else TORCH_CHECK(false, "rasterize: means is ", t.scalar_type(), ", expected float32 or float64");
}

}  // namespace dgr
