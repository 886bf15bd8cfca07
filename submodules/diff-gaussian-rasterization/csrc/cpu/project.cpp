// Driver of common/project.h: kLanes Gaussians at a time.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <optional>
#include <tuple>
#include <vector>

#include "../common/project.h"
#include "../args.h"
#include "parallel.h"
#include "simd.h"

namespace dgr {
namespace {

using at::Tensor;
using OptTensor = std::optional<Tensor>;

constexpr int kWide = 8;
// Gaussians a task takes; also the grain of the ordered sum behind the gradient of the camera.
constexpr int64_t kGrain = 2048;

template <class S> using V = Vec<S, kWide>;

// Rows of C scalars. The last, partial vector repeats its last row: loads stay inside, stores skip the copies.
template <class S, int C> DGR_HD void load_rows(const S* data, int64_t first, int64_t count, V<S>* out) {
  S lanes[C][kWide];
  for (int lane = 0; lane < kWide; ++lane) {
    const S* row = data + (first + std::min<int64_t>(lane, count - 1)) * C;
    for (int c = 0; c < C; ++c) lanes[c][lane] = row[c];
  }
  for (int c = 0; c < C; ++c) out[c] = V<S>::load(lanes[c]);
}

template <class S, int C> DGR_HD void store_rows(S* data, int64_t first, int64_t count, const V<S>* in) {
  for (int lane = 0; lane < count; ++lane)
    for (int c = 0; c < C; ++c) data[(first + lane) * C + c] = in[c].v[lane];
}

template <class S> Camera<V<S>> camera_of(const Tensor& world_view, double fx, double fy, double cx, double cy, int64_t width, int64_t height, double near) {
  const S* w = world_view.const_data_ptr<S>();
  Camera<S> limits;
  limits.fx = S(fx), limits.fy = S(fy), limits.cx = S(cx), limits.cy = S(cy);
  set_limits(limits, double(width), double(height));
  Camera<V<S>> c;
  c.r0 = {w[0], w[1], w[2]}, c.r1 = {w[4], w[5], w[6]}, c.r2 = {w[8], w[9], w[10]}, c.p = {w[3], w[7], w[11]};
  c.fx = limits.fx, c.fy = limits.fy, c.cx = limits.cx, c.cy = limits.cy;
  c.u_min = limits.u_min, c.u_max = limits.u_max, c.v_min = limits.v_min, c.v_max = limits.v_max;
  c.width = limits.width, c.height = limits.height;
  c.near = S(near);
  return c;
}

// The shapes of the Gaussians: scales and quats, or cov3d (upper triangle).
template <class S> struct Shapes {
  const S *scales = nullptr, *quats = nullptr, *cov3d = nullptr;
  S modifier;

  Shapes(const OptTensor& s, const OptTensor& q, const OptTensor& c, double scale_modifier) : modifier(S(scale_modifier)) {
    if (c) cov3d = c->const_data_ptr<S>();
    else scales = s->const_data_ptr<S>(), quats = q->const_data_ptr<S>();
  }
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

template <class S>
void project_all(const Camera<V<S>>& camera, const Shapes<S>& shapes, const S* means, int64_t n, S* means2d, S* conics, S* depths, int32_t* radii) {
  parallel_ranges(n, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t g = begin; g < end; g += kWide) {
      const int64_t count = std::min<int64_t>(kWide, end - g);
      Projected<V<S>> out;
      const auto visible = project(camera, load3(means, g, count), shapes.covariances(g, count), out);
      const V<S> zero(S(0));
      const V<S> radius = select(visible, out.radius, zero);
      for (int lane = 0; lane < count; ++lane) radii[g + lane] = int32_t(radius[lane]);
      if (!means2d) continue;
      const V<S> xy[2] = {select(visible, out.x, zero), select(visible, out.y, zero)};
      const V<S> abc[3] = {select(visible, out.a, zero), select(visible, out.b, zero), select(visible, out.c, zero)};
      const V<S> depth = select(visible, out.depth, zero);
      store_rows<S, 2>(means2d, g, count, xy);
      store_rows<S, 3>(conics, g, count, abc);
      store_rows<S, 1>(depths, g, count, &depth);
    }
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> project_cpu(
    const Tensor& means, const OptTensor& scales, const OptTensor& quats, const OptTensor& cov3d, const Tensor& world_view,
    const OptTensor& screen, double fx, double fy, double cx, double cy, int64_t width, int64_t height, double scale_modifier, double near) {
  check_shapes(means, scales, quats, cov3d, world_view, width, height);
  const int64_t n = means.size(0);
  const Tensor m = means.contiguous(), w = world_view.contiguous();
  const OptTensor s = contiguous(scales), q = contiguous(quats), c = contiguous(cov3d);
  Tensor means2d = at::empty({n, 2}, means.options()), conics = at::empty({n, 3}, means.options()), depths = at::empty({n}, means.options());
  Tensor radii = at::empty({n}, means.options().dtype(at::kInt));
  on_scalar(means, [&](auto tag) {
    using S = decltype(tag);
    project_all<S>(camera_of<S>(w, fx, fy, cx, cy, width, height, near), Shapes<S>(s, q, c, scale_modifier), m.const_data_ptr<S>(), n,
                   means2d.data_ptr<S>(), conics.data_ptr<S>(), depths.data_ptr<S>(), radii.data_ptr<int32_t>());
  });
  return {means2d, conics, depths, radii};
}

Tensor visible_radii_cpu(const Tensor& means, const OptTensor& scales, const OptTensor& quats, const OptTensor& cov3d, const Tensor& world_view,
                         double fx, double fy, double cx, double cy, int64_t width, int64_t height, double scale_modifier, double near) {
  check_shapes(means, scales, quats, cov3d, world_view, width, height);
  const Tensor m = means.contiguous(), w = world_view.contiguous();
  const OptTensor s = contiguous(scales), q = contiguous(quats), c = contiguous(cov3d);
  Tensor radii = at::empty({means.size(0)}, means.options().dtype(at::kInt));
  on_scalar(means, [&](auto tag) {
    using S = decltype(tag);
    project_all<S>(camera_of<S>(w, fx, fy, cx, cy, width, height, near), Shapes<S>(s, q, c, scale_modifier), m.const_data_ptr<S>(),
                   means.size(0), nullptr, nullptr, nullptr, radii.data_ptr<int32_t>());
  });
  return radii;
}

template <class S>
void project_vjp_all(const Camera<V<S>>& camera, const Shapes<S>& shapes, const S* means, const S* conics, const int32_t* radii, int64_t n,
                     const S* g_means2d, const S* g_conics, const S* g_depths, S* grad_means, S* grad_scales, S* grad_quats, S* grad_cov3d, S* grad_view) {
  const int64_t tasks = (n + kGrain - 1) / kGrain;
  std::vector<double> partial(grad_view ? tasks * 12 : 0, 0.0);
  parallel_ranges(n, kGrain, [&](int64_t begin, int64_t end) {
    double* view = grad_view ? partial.data() + begin / kGrain * 12 : nullptr;
    for (int64_t g = begin; g < end; g += kWide) {
      const int64_t count = std::min<int64_t>(kWide, end - g);
      V<S> radius;
      bool any = false;
      for (int lane = 0; lane < kWide; ++lane) {
        const int32_t r = lane < count ? radii[g + lane] : 0;
        radius.v[lane] = S(r);
        any |= r > 0;
      }
      const V<S> zero(S(0));
      V<S> gm[3] = {zero, zero, zero}, gs[3] = {zero, zero, zero}, gq[4] = {zero, zero, zero, zero}, gc[6] = {zero, zero, zero, zero, zero, zero};
      if (any) {
        const Vec3<V<S>> m = load3(means, g, count);
        const Symmetric3<V<S>> cov = shapes.covariances(g, count);
        Projected<V<S>> conic, in{zero, zero, zero, zero, zero, zero, zero};
        V<S> rows[3];
        load_rows<S, 3>(conics, g, count, rows);
        conic.a = rows[0], conic.b = rows[1], conic.c = rows[2];
        if (g_means2d) load_rows<S, 2>(g_means2d, g, count, rows), in.x = rows[0], in.y = rows[1];
        if (g_conics) load_rows<S, 3>(g_conics, g, count, rows), in.a = rows[0], in.b = rows[1], in.c = rows[2];
        if (g_depths) load_rows<S, 1>(g_depths, g, count, rows), in.depth = rows[0];
        Vec3<V<S>> dm;
        Symmetric3<V<S>> dc;
        CameraGrad<V<S>> dv;
        project_vjp(camera, m, cov, conic, in, dm, dc, dv);
        const auto visible = radius > zero;
        const auto keep = [&](V<S> x) { return select(visible, x, zero); };
        gm[0] = keep(dm.x), gm[1] = keep(dm.y), gm[2] = keep(dm.z);
        if (shapes.cov3d) {
          gc[0] = keep(dc.xx), gc[1] = keep(dc.xy), gc[2] = keep(dc.xz), gc[3] = keep(dc.yy), gc[4] = keep(dc.yz), gc[5] = keep(dc.zz);
        } else if (grad_scales || grad_quats) {
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
            for (int lane = 0; lane < kWide; ++lane) view[k] += double(kept[lane]);
          }
        }
      }
      if (grad_means) store_rows<S, 3>(grad_means, g, count, gm);
      if (grad_scales) store_rows<S, 3>(grad_scales, g, count, gs);
      if (grad_quats) store_rows<S, 4>(grad_quats, g, count, gq);
      if (grad_cov3d) store_rows<S, 6>(grad_cov3d, g, count, gc);
    }
  });
  if (!grad_view) return;
  double total[12] = {};
  for (int64_t t = 0; t < tasks; ++t)
    for (int k = 0; k < 12; ++k) total[k] += partial[t * 12 + k];
  for (int k = 0; k < 12; ++k) grad_view[k] = S(total[k]);
}

// Gradients that are not wanted (or whose input is absent) come back empty.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> project_backward_cpu(
    const OptTensor& grad_means2d, const OptTensor& grad_conics, const OptTensor& grad_depths, const Tensor& means, const OptTensor& scales,
    const OptTensor& quats, const OptTensor& cov3d, const Tensor& world_view, const Tensor& conics, const Tensor& radii, double fx, double fy,
    double cx, double cy, int64_t width, int64_t height, double scale_modifier, double near, bool need_view) {
  check_shapes(means, scales, quats, cov3d, world_view, width, height);
  check_projected(means, conics, radii, grad_means2d, grad_conics, grad_depths);
  const int64_t n = means.size(0);
  const Tensor m = means.contiguous(), w = world_view.contiguous(), k = conics.contiguous(), r = radii.contiguous();
  const OptTensor s = contiguous(scales), q = contiguous(quats), c = contiguous(cov3d);
  const OptTensor g2 = contiguous(grad_means2d), gk = contiguous(grad_conics), gd = contiguous(grad_depths);
  const auto shape = [&](const OptTensor& t, int64_t columns) { return at::empty({t ? n : 0, columns}, means.options()); };
  Tensor dm = at::empty({n, 3}, means.options()), ds = shape(scales, 3), dq = shape(quats, 4), dc = shape(cov3d, 6);
  Tensor dw = at::zeros({need_view ? 4 : 0, 4}, means.options());
  on_scalar(means, [&](auto tag) {
    using S = decltype(tag);
    const auto in = [](const OptTensor& t) { return t ? t->const_data_ptr<S>() : nullptr; };
    project_vjp_all<S>(camera_of<S>(w, fx, fy, cx, cy, width, height, near), Shapes<S>(s, q, c, scale_modifier), m.const_data_ptr<S>(),
                       k.const_data_ptr<S>(), r.const_data_ptr<int32_t>(), n, in(g2), in(gk), in(gd), dm.data_ptr<S>(),
                       scales ? ds.data_ptr<S>() : nullptr, quats ? dq.data_ptr<S>() : nullptr, cov3d ? dc.data_ptr<S>() : nullptr,
                       need_view ? dw.data_ptr<S>() : nullptr);
  });
  return {dm, ds, dq, dc, dw};
}

}  // namespace

TORCH_LIBRARY_IMPL(diff_gaussian_rasterization, CPU, m) {
  m.impl("project", &project_cpu);
  m.impl("project_backward", &project_backward_cpu);
  m.impl("visible_radii", &visible_radii_cpu);
}

}  // namespace dgr
