// Checks and small tensor helpers of the CPU drivers. Messages for people are written in ops.py; these only guard
// memory when the raw operators are called.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <optional>

namespace dgr {

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
  TORCH_CHECK(width > 0 && height > 0, "rasterize: picture of ", width, "x", height, " pixels");
}

// Calls f with a value of the tensor's scalar type.
template <class F> void on_scalar(const at::Tensor& t, const F& f) {
  if (t.scalar_type() == at::kFloat) f(float{});
  else if (t.scalar_type() == at::kDouble) f(double{});
  else TORCH_CHECK(false, "rasterize: means is ", t.scalar_type(), ", expected float32 or float64");
}

}  // namespace dgr
