// Driver of common/project.h, backward: one thread a Gaussian. The gradient of the pose is a sum over all Gaussians:
// warps, then blocks, then a second pass over the blocks, always in the same order.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
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

constexpr int kPoseEntries = 12;  // the upper three rows of world_view

template <class S> struct ScreenGrads { const S *means2d, *conics, *depths; };
template <class S> struct WorldGrads { S *means, *scales, *quats, *cov3d; };

// `pose_rows`: [blocks, 12] sums over the Gaussians of each block, or null. Pointers in `grads` that are null are not
// wanted.
template <class S>
__global__ void __launch_bounds__(kThreads)
    project_vjp_kernel(Camera<S> intrinsics, const S* __restrict__ world_view, Shapes<S> shapes, const S* __restrict__ means,
                       const S* __restrict__ conics, const int32_t* __restrict__ radii, int64_t n, ScreenGrads<S> in, WorldGrads<S> grads,
                       double* __restrict__ pose_rows) {
  const int64_t g = thread_index();
  const bool exists = g < n;
  Vec3<S> dm = {}, ds = {};
  Quat<S> dq = {};
  Symmetric3<S> dc = {};
  CameraGrad<S> pose = {};
  if (exists && radii[g] > 0) {
    Projected<S> conic = {}, g_screen = {};
    conic.a = conics[3 * g], conic.b = conics[3 * g + 1], conic.c = conics[3 * g + 2];
    if (in.means2d) g_screen.x = in.means2d[2 * g], g_screen.y = in.means2d[2 * g + 1];
    if (in.conics) g_screen.a = in.conics[3 * g], g_screen.b = in.conics[3 * g + 1], g_screen.c = in.conics[3 * g + 2];
    if (in.depths) g_screen.depth = in.depths[g];
    project_vjp(posed(intrinsics, world_view), load3(means, g), shapes.covariance_of(g), conic, g_screen, dm, dc, pose);
    if (grads.scales) {
      covariance_vjp(shapes.scale(g), shapes.quat(g), dc, ds, dq);
      ds = shapes.modifier * ds;
    }
  }
  if (exists) {
    S* row = grads.means + 3 * g;
    row[0] = dm.x, row[1] = dm.y, row[2] = dm.z;
    if (grads.scales) {
      row = grads.scales + 3 * g;
      row[0] = ds.x, row[1] = ds.y, row[2] = ds.z;
      row = grads.quats + 4 * g;
      row[0] = dq.w, row[1] = dq.x, row[2] = dq.y, row[3] = dq.z;
    }
    if (grads.cov3d) {
      row = grads.cov3d + 6 * g;
      row[0] = dc.xx, row[1] = dc.xy, row[2] = dc.xz, row[3] = dc.yy, row[4] = dc.yz, row[5] = dc.zz;
    }
  }
  if (!pose_rows) return;
  __shared__ double room[kPoseEntries][kWarps];
  const S entries[kPoseEntries] = {pose.r0.x, pose.r0.y, pose.r0.z, pose.p.x, pose.r1.x, pose.r1.y,
                                   pose.r1.z, pose.p.y,  pose.r2.x, pose.r2.y, pose.r2.z, pose.p.z};
  for (int k = 0; k < kPoseEntries; ++k) {
    const S total = warp_sum(entries[k]);
    if (threadIdx.x % kWarp == 0) room[k][threadIdx.x / kWarp] = double(total);
  }
  __syncthreads();
  if (threadIdx.x < kPoseEntries) {
    double total = 0;
    for (int warp = 0; warp < kWarps; ++warp) total += room[threadIdx.x][warp];
    pose_rows[int64_t(blockIdx.x) * kPoseEntries + threadIdx.x] = total;
  }
}

// Gradients that are not wanted (or whose input is absent) come back empty.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> project_backward_cuda(
    const OptTensor& grad_means2d, const OptTensor& grad_conics, const OptTensor& grad_depths, const Tensor& means, const OptTensor& scales,
    const OptTensor& quats, const OptTensor& cov3d, const Tensor& world_view, const Tensor& conics, const Tensor& radii, double fx, double fy,
    double cx, double cy, int64_t width, int64_t height, double scale_modifier, double near, bool need_view) {
  check_shapes(means, scales, quats, cov3d, world_view, width, height);
  check_projected(means, conics, radii, grad_means2d, grad_conics, grad_depths);
  const c10::cuda::CUDAGuard guard(means.device());
  const int64_t n = means.size(0);
  const Tensor m = means.contiguous(), w = world_view.contiguous(), k = conics.contiguous(), r = radii.contiguous();
  const OptTensor s = contiguous(scales), q = contiguous(quats), c = contiguous(cov3d);
  const OptTensor g2 = contiguous(grad_means2d), gk = contiguous(grad_conics), gd = contiguous(grad_depths);
  const auto shape = [&](const OptTensor& t, int64_t columns) { return at::empty({t ? n : 0, columns}, means.options()); };
  Tensor dm = at::empty({n, 3}, means.options()), ds = shape(scales, 3), dq = shape(quats, 4), dc = shape(cov3d, 6);
  Tensor dw = at::zeros({need_view ? 4 : 0, 4}, means.options());
  const dim3 grid = blocks_of(n);
  const Tensor pose_rows = at::empty({need_view ? int64_t(grid.x) : 0, kPoseEntries}, means.options().dtype(at::kDouble));
  on_scalar(means, [&](auto tag) {
    using S = decltype(tag);
    const auto in = [](const OptTensor& t) { return t ? data<S>(*t) : nullptr; };
    launch(project_vjp_kernel<S>, grid, intrinsics<S>(fx, fy, cx, cy, width, height, near, {0, 0, width, height}), data<S>(w),
           Shapes<S>(s, q, c, scale_modifier), data<S>(m), data<S>(k), data<int32_t>(r), n, ScreenGrads<S>{in(g2), in(gk), in(gd)},
           WorldGrads<S>{data<S>(dm), data<S>(ds), data<S>(dq), data<S>(dc)}, data<double>(pose_rows));
    if (need_view) launch(sum_columns<S, double>, dim3(kPoseEntries), data<double>(pose_rows), int64_t(grid.x), data<S>(dw));
  });
  return {dm, ds, dq, dc, dw};
}

}  // namespace

TORCH_LIBRARY_IMPL(diff_gaussian_rasterization, CUDA, m) { m.impl("project_backward", &project_backward_cuda); }

}  // namespace dgr
