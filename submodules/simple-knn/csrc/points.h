// Checks of the argument, for every driver.
#pragma once

#include <ATen/core/Tensor.h>

namespace simple_knn {

inline void check(const at::Tensor& points) {
  TORCH_CHECK(points.dim() == 2 && points.size(1) == 3, "simple_knn: points have shape ", points.sizes(),
              ", expected [N,3]");
  TORCH_CHECK(points.scalar_type() == at::kFloat || points.scalar_type() == at::kDouble, "simple_knn: points are ",
              points.scalar_type(), ", expected float32 or float64");
}

}  // namespace simple_knn
