// common/project.h, kLanes Gaussians at a time.
#pragma once

#include "../../common/project.h"
#include "../kernels.h"
#include "simd.h"
#include "standard.h"

namespace dgr {
inline namespace DGR_VARIANT {
namespace {

// Rows of C scalars. The last, partial vector repeats its last row: loads stay inside, stores skip the copies.
template <class S, int C> DGR_HD void load_rows(const S* data, int64_t first, int64_t count, V<S>* out) {
  if constexpr (std::is_same_v<S, float> && C <= 4) {
    if (count == kLanes) {
      V<S> flat[C];
      for (int c = 0; c < C; ++c) flat[c] = V<S>::load(data + first * C + c * kLanes);
      return columns_of<C>(flat, out);
    }
  }
  S lanes[C][kLanes];
  for (int lane = 0; lane < kLanes; ++lane) {
    const S* row = data + (first + std::min<int64_t>(lane, count - 1)) * C;
    for (int c = 0; c < C; ++c) lanes[c][lane] = row[c];
  }
  for (int c = 0; c < C; ++c) out[c] = V<S>::load(lanes[c]);
}

template <class S, int C> DGR_HD void store_rows(S* data, int64_t first, int64_t count, const V<S>* in) {
  if constexpr (std::is_same_v<S, float> && C <= 4) {
    if (count == kLanes) {
      V<S> flat[C];
      parts_of<C>(in, flat);
      for (int c = 0; c < C; ++c) flat[c].store(data + first * C + c * kLanes);
      return;
    }
  }
  for (int lane = 0; lane < count; ++lane)
    for (int c = 0; c < C; ++c) data[(first + lane) * C + c] = in[c].v[lane];
}

template <class S> Camera<V<S>> camera_of(const View& view, const S* w) {
  Camera<S> limits;
  limits.fx = S(view.fx), limits.fy = S(view.fy), limits.cx = S(view.cx), limits.cy = S(view.cy);
  set_limits(limits, double(view.width), double(view.height));
  set_window(limits, view.window);
  Camera<V<S>> c;
  c.r0 = {w[0], w[1], w[2]}, c.r1 = {w[4], w[5], w[6]}, c.r2 = {w[8], w[9], w[10]}, c.p = {w[3], w[7], w[11]};
  c.fx = limits.fx, c.fy = limits.fy, c.cx = limits.cx, c.cy = limits.cy;
  c.u_min = limits.u_min, c.u_max = limits.u_max, c.v_min = limits.v_min, c.v_max = limits.v_max;
  c.width = limits.width, c.height = limits.height;
  c.left = limits.left, c.top = limits.top, c.right = limits.right, c.bottom = limits.bottom;
  c.near = S(view.near);
  return c;
}

// The shapes, loaded a vector at a time.
template <class S> struct Shapes : World<S> {
  using World<S>::scales, World<S>::quats, World<S>::cov3d, World<S>::modifier;

  DGR_HD void load(int64_t first, int64_t count, Vec3<V<S>>& s, Quat<V<S>>& q) const {
    V<S> rows[4];
    load_rows<S, 3>(scales, first, count, rows);
    s = V<S>(modifier) * Vec3<V<S>>{rows[0], rows[1], rows[2]};
    load_rows<S, 4>(quats, first, count, rows);
    q = {rows[0], rows[1], rows[2], rows[3]};
  }
  DGR_HD Symmetric3<V<S>> covariances(int64_t first, int64_t count) const {
    if (cov3d) {
      V<S> rows[6];
      load_rows<S, 6>(cov3d, first, count, rows);
      return {rows[0], rows[1], rows[2], rows[3], rows[4], rows[5]};
    }
    Vec3<V<S>> s;
    Quat<V<S>> q;
    load(first, count, s, q);
    return covariance(s, q);
  }
};

template <class S> DGR_HD Vec3<V<S>> load3(const S* data, int64_t first, int64_t count) {
  V<S> rows[3];
  load_rows<S, 3>(data, first, count, rows);
  return {rows[0], rows[1], rows[2]};
}

// The radii of those that reach a square that is drawn; 0 for the others.
template <class S> V<S> of_drawn(const Squares& squares, const Camera<V<S>>& camera, const Projected<V<S>>& p, V<S> radius) {
  const Reached<V<S>> box = reached(squares, camera, p);
  for (int lane = 0; lane < kLanes; ++lane)
    if (radius[lane] > 0 && !any_drawn(squares, int(box.first[lane]), int(box.last[lane]), int(box.above[lane]), int(box.below[lane])))
      radius.v[lane] = 0;
  return radius;
}

template <class S> void project_all(const View& view, const World<S>& world, int64_t begin, int64_t end, const ScreenRows<S>& rows) {
  const Camera<V<S>> camera = camera_of(view, world.world_view);
  const Shapes<S> shapes{world};
  for (int64_t g = begin; g < end; g += kLanes) {
    const int64_t count = std::min<int64_t>(kLanes, end - g);
    Projected<V<S>> out;
    auto visible = project(camera, load3(shapes.means, g, count), shapes.covariances(g, count), out);
    const V<S> zero(S(0));
    V<S> radius = select(visible, out.radius, zero);
    if (view.squares.drawn && any(visible)) {
      radius = of_drawn(view.squares, camera, out, radius);
      visible = radius > zero;
    }
    if (count == kLanes) {
      const auto whole = __builtin_convertvector(radius.v, typename NativeOf<float, kLanes>::Bits);
      std::memcpy(rows.radii + g, &whole, sizeof(whole));
    } else {
      for (int lane = 0; lane < count; ++lane) rows.radii[g + lane] = int32_t(radius[lane]);
    }
    if (!rows.means2d) continue;
    const V<S> xy[2] = {select(visible, out.x, zero), select(visible, out.y, zero)};
    const V<S> abc[3] = {select(visible, out.a, zero), select(visible, out.b, zero), select(visible, out.c, zero)};
    const V<S> depth = select(visible, out.depth, zero);
    store_rows<S, 2>(rows.means2d, g, count, xy);
    store_rows<S, 3>(rows.conics, g, count, abc);
    store_rows<S, 1>(rows.depths, g, count, &depth);
  }
}

template <class S>
void project_vjp_all(const View& pose, const World<S>& world, int64_t begin, int64_t end, const ProjectGrads<S>& grads, double* view) {
  const Camera<V<S>> camera = camera_of(pose, world.world_view);
  const Shapes<S> shapes{world};
  for (int64_t g = begin; g < end; g += kLanes) {
    const int64_t count = std::min<int64_t>(kLanes, end - g);
    typename NativeOf<float, kLanes>::Bits radii = {};
    if (count == kLanes) std::memcpy(&radii, grads.radii + g, sizeof(radii));
    else
      for (int lane = 0; lane < count; ++lane) radii[lane] = grads.radii[g + lane];
    const V<S> radius = __builtin_convertvector(radii, typename V<S>::Native), zero(S(0));
    const bool any = dgr::any(radius > zero);
    V<S> gm[3] = {zero, zero, zero}, gs[3] = {zero, zero, zero}, gq[4] = {zero, zero, zero, zero}, gc[6] = {zero, zero, zero, zero, zero, zero};
    if (any) {
      const Vec3<V<S>> m = load3(shapes.means, g, count);
      const Symmetric3<V<S>> cov = shapes.covariances(g, count);
      Projected<V<S>> conic, in{zero, zero, zero, zero, zero, zero, zero, zero, zero};
      V<S> rows[3];
      load_rows<S, 3>(grads.conics, g, count, rows);
      conic.a = rows[0], conic.b = rows[1], conic.c = rows[2];
      if (grads.g_means2d) load_rows<S, 2>(grads.g_means2d, g, count, rows), in.x = rows[0], in.y = rows[1];
      if (grads.g_conics) load_rows<S, 3>(grads.g_conics, g, count, rows), in.a = rows[0], in.b = rows[1], in.c = rows[2];
      if (grads.g_depths) load_rows<S, 1>(grads.g_depths, g, count, rows), in.depth = rows[0];
      Vec3<V<S>> dm;
      Symmetric3<V<S>> dc;
      CameraGrad<V<S>> dv;
      project_vjp(camera, m, cov, conic, in, dm, dc, dv);
      const auto visible = radius > zero;
      const auto keep = [&](V<S> x) DGR_LAMBDA { return select(visible, x, zero); };
      gm[0] = keep(dm.x), gm[1] = keep(dm.y), gm[2] = keep(dm.z);
      if (shapes.cov3d) {
        gc[0] = keep(dc.xx), gc[1] = keep(dc.xy), gc[2] = keep(dc.xz), gc[3] = keep(dc.yy), gc[4] = keep(dc.yz), gc[5] = keep(dc.zz);
      } else if (grads.scales || grads.quats) {
        Vec3<V<S>> s, ds;
        Quat<V<S>> q, dq;
        shapes.load(g, count, s, q);
        covariance_vjp(s, q, dc, ds, dq);
        const V<S> mod(shapes.modifier);
        gs[0] = keep(mod * ds.x), gs[1] = keep(mod * ds.y), gs[2] = keep(mod * ds.z);
        gq[0] = keep(dq.w), gq[1] = keep(dq.x), gq[2] = keep(dq.y), gq[3] = keep(dq.z);
      }
      if (view) {
        const V<S> all[12] = {dv.r0.x, dv.r0.y, dv.r0.z, dv.p.x, dv.r1.x, dv.r1.y, dv.r1.z, dv.p.y, dv.r2.x, dv.r2.y, dv.r2.z, dv.p.z};
        for (int k = 0; k < 12; ++k) {
          const V<S> kept = keep(all[k]);
          for (int lane = 0; lane < kLanes; ++lane) view[k] += double(kept[lane]);
        }
      }
    }
    if (grads.means) store_rows<S, 3>(grads.means, g, count, gm);
    if (grads.scales) store_rows<S, 3>(grads.scales, g, count, gs);
    if (grads.quats) store_rows<S, 4>(grads.quats, g, count, gq);
    if (grads.cov3d) store_rows<S, 6>(grads.cov3d, g, count, gc);
  }
}

}  // namespace
}  // namespace DGR_VARIANT
}  // namespace dgr
