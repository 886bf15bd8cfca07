// The camera and the Gaussians as the kernels of projection read them.
#pragma once

#include <optional>

#include "../common/project.h"
#include "launch.cuh"

namespace dgr {

// The pose stays on the device, so that the host need not wait for it: `posed` reads it in the kernel.
template <class S>
Camera<S> intrinsics(double fx, double fy, double cx, double cy, int64_t width, int64_t height, double near, const Window& window) {
  Camera<S> camera = {};
  camera.fx = S(fx), camera.fy = S(fy), camera.cx = S(cx), camera.cy = S(cy);
  set_limits(camera, double(width), double(height));
  set_window(camera, window);
  camera.near = S(near);
  return camera;
}

template <class S> DGR_DEVICE Camera<S> posed(Camera<S> camera, const S* __restrict__ w) {
  camera.r0 = {w[0], w[1], w[2]}, camera.r1 = {w[4], w[5], w[6]}, camera.r2 = {w[8], w[9], w[10]}, camera.p = {w[3], w[7], w[11]};
  return camera;
}

template <class S> DGR_DEVICE Vec3<S> load3(const S* __restrict__ rows, int64_t g) { return {rows[3 * g], rows[3 * g + 1], rows[3 * g + 2]}; }

// The shapes of the Gaussians: scales and quats, or cov3d (upper triangle).
template <class S> struct Shapes {
  const S *scales = nullptr, *quats = nullptr, *cov3d = nullptr;
  S modifier;

  Shapes(const std::optional<at::Tensor>& s, const std::optional<at::Tensor>& q, const std::optional<at::Tensor>& c, double scale_modifier)
      : modifier(S(scale_modifier)) {
    if (c) cov3d = data<S>(*c);
    else scales = data<S>(*s), quats = data<S>(*q);
  }
  DGR_DEVICE Vec3<S> scale(int64_t g) const { return modifier * load3(scales, g); }
  DGR_DEVICE Quat<S> quat(int64_t g) const { return {quats[4 * g], quats[4 * g + 1], quats[4 * g + 2], quats[4 * g + 3]}; }
  DGR_DEVICE Symmetric3<S> covariance_of(int64_t g) const {
    if (!cov3d) return covariance(scale(g), quat(g));
    const S* row = cov3d + 6 * g;
    return {row[0], row[1], row[2], row[3], row[4], row[5]};
  }
};

}  // namespace dgr
