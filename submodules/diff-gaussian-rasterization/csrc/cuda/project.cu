// Driver of common/project.h, forward: one thread a Gaussian.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include <optional>
#include <tuple>

#include "../args.h"
#include "camera.cuh"

namespace dgr {
namespace {

using at::Tensor;
using OptTensor = std::optional<Tensor>;

// Without `means2d` only the radii are wanted.
template <class S>
__global__ void __launch_bounds__(kThreads)
    project_kernel(Camera<S> camera, const S* __restrict__ world_view, Shapes<S> shapes, const S* __restrict__ means, int64_t n,
                   Squares squares, S* __restrict__ means2d, S* __restrict__ conics, S* __restrict__ depths, int32_t* __restrict__ radii) {
  const int64_t g = thread_index();
  if (g >= n) return;
  Projected<S> out;
  bool visible = project(posed(camera, world_view), load3(means, g), shapes.covariance_of(g), out);
  if (squares.drawn && visible) {
    const Reached<S> box = reached(squares, camera, out);
    visible = any_drawn(squares, int(box.first), int(box.last), int(box.above), int(box.below));
  }
  radii[g] = visible ? int32_t(out.radius) : 0;
  if (!means2d) return;
  if (!visible) out = {};
  means2d[2 * g] = out.x, means2d[2 * g + 1] = out.y;
  conics[3 * g] = out.a, conics[3 * g + 1] = out.b, conics[3 * g + 2] = out.c;
  depths[g] = out.depth;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> project_cuda(
    const Tensor& means, const OptTensor& scales, const OptTensor& quats, const OptTensor& cov3d, const Tensor& world_view,
    const OptTensor& screen, double fx, double fy, double cx, double cy, int64_t width, int64_t height, double scale_modifier, double near,
    at::OptionalIntArrayRef window, const OptTensor& tiles) {
  check_shapes(means, scales, quats, cov3d, world_view, width, height);
  const Window part = window_of(window, width, height);
  check_tiles(tiles, part.width, part.height, means);
  const c10::cuda::CUDAGuard guard(means.device());
  const int64_t n = means.size(0);
  const Tensor m = means.contiguous(), w = world_view.contiguous();
  const OptTensor s = contiguous(scales), q = contiguous(quats), c = contiguous(cov3d), mask = contiguous(tiles);
  Tensor means2d = at::empty({n, 2}, means.options()), conics = at::empty({n, 3}, means.options()), depths = at::empty({n}, means.options());
  Tensor radii = at::empty({n}, means.options().dtype(at::kInt));
  on_scalar(means, [&](auto tag) {
    using S = decltype(tag);
    launch(project_kernel<S>, blocks_of(n), intrinsics<S>(fx, fy, cx, cy, width, height, near, part), data<S>(w),
           Shapes<S>(s, q, c, scale_modifier), data<S>(m), n, squares_of(mask), data<S>(means2d), data<S>(conics), data<S>(depths), data<int32_t>(radii));
  });
  return {means2d, conics, depths, radii};
}

Tensor visible_radii_cuda(const Tensor& means, const OptTensor& scales, const OptTensor& quats, const OptTensor& cov3d, const Tensor& world_view,
                          double fx, double fy, double cx, double cy, int64_t width, int64_t height, double scale_modifier, double near,
                          at::OptionalIntArrayRef window, const OptTensor& tiles) {
  check_shapes(means, scales, quats, cov3d, world_view, width, height);
  const Window part = window_of(window, width, height);
  check_tiles(tiles, part.width, part.height, means);
  const c10::cuda::CUDAGuard guard(means.device());
  const int64_t n = means.size(0);
  const Tensor m = means.contiguous(), w = world_view.contiguous();
  const OptTensor s = contiguous(scales), q = contiguous(quats), c = contiguous(cov3d), mask = contiguous(tiles);
  Tensor radii = at::empty({n}, means.options().dtype(at::kInt));
  on_scalar(means, [&](auto tag) {
    using S = decltype(tag);
    S* const none = nullptr;
    launch(project_kernel<S>, blocks_of(n), intrinsics<S>(fx, fy, cx, cy, width, height, near, part), data<S>(w),
           Shapes<S>(s, q, c, scale_modifier), data<S>(m), n, squares_of(mask), none, none, none, data<int32_t>(radii));
  });
  return radii;
}

}  // namespace

TORCH_LIBRARY_IMPL(diff_gaussian_rasterization, CUDA, m) {
  m.impl("project", &project_cuda);
  m.impl("visible_radii", &visible_radii_cuda);
}

}  // namespace dgr
