// One Gaussian from the world to the screen, and back with gradients.
//
// Notation: m mean in the world, t = R m + p in the camera, (u, v) = (tx, ty) / tz, S the 3x3 covariance (upper
// triangle xx xy xz yy yz zz), P the 2x3 projection of world offsets to pixels (rows p0, p1), K = P S P^T + 0.3 I the
// screen covariance, conic = K^-1 as (a, b, c) with the quadratic form a dx^2 + 2 b dx dy + c dy^2.
// Pixel coordinates are COLMAP's: the centre of the first pixel is (0.5, 0.5).
// Invariant: `visible` alone decides what is drawn; it is written so that a NaN anywhere in the input fails it.
#pragma once

#include "constants.h"
#include "scalar.h"
#include "window.h"

namespace dgr {
inline namespace DGR_VARIANT {

template <class F> struct Camera {
  Vec3<F> r0, r1, r2;  // rows of the world-to-camera rotation
  Vec3<F> p;           // and its translation
  F fx, fy, cx, cy;
  F u_min, u_max, v_min, v_max;  // where the Jacobian is clamped
  F width, height;               // rounded up to kCullTile
  F left, top, right, bottom;    // of the window, its size rounded up to kCullTile
  F near;
};

// Limits are measured from the principal point: with it in the middle they are 1.3 tan(fov/2) on each side.
template <class F> void set_limits(Camera<F>& camera, double width, double height) {
  const double fx = double(camera.fx), fy = double(camera.fy), cx = double(camera.cx), cy = double(camera.cy);
  const double margin_u = (kJacobianMargin - 1) * 0.5 * width / fx, margin_v = (kJacobianMargin - 1) * 0.5 * height / fy;
  camera.u_min = F(-cx / fx - margin_u);
  camera.u_max = F((width - cx) / fx + margin_u);
  camera.v_min = F(-cy / fy - margin_v);
  camera.v_max = F((height - cy) / fy + margin_v);
  camera.width = F(std::ceil(width / kCullTile) * kCullTile);
  camera.height = F(std::ceil(height / kCullTile) * kCullTile);
}

template <class F> void set_window(Camera<F>& camera, const Window& window) {
  camera.left = F(window.x);
  camera.top = F(window.y);
  camera.right = F(double(window.x) + std::ceil(double(window.width) / kCullTile) * kCullTile);
  camera.bottom = F(double(window.y) + std::ceil(double(window.height) / kCullTile) * kCullTile);
}

template <class F> struct Symmetric3 { F xx, xy, xz, yy, yz, zz; };

template <class F> DGR_HD Vec3<F> times(const Symmetric3<F>& s, const Vec3<F>& a) {
  return {s.xx * a.x + s.xy * a.y + s.xz * a.z, s.xy * a.x + s.yy * a.y + s.yz * a.z,
          s.xz * a.x + s.yz * a.y + s.zz * a.z};
}

template <class F> struct Quat { F w, x, y, z; };

// Rows of the rotation of a quaternion. It is not normalised here, as in 3DGS: the caller does that.
template <class F> DGR_HD void quat_rows(const Quat<F>& q, Vec3<F>& r0, Vec3<F>& r1, Vec3<F>& r2) {
  const F one(1), two(2);
  r0 = {one - two * (q.y * q.y + q.z * q.z), two * (q.x * q.y - q.w * q.z), two * (q.x * q.z + q.w * q.y)};
  r1 = {two * (q.x * q.y + q.w * q.z), one - two * (q.x * q.x + q.z * q.z), two * (q.y * q.z - q.w * q.x)};
  r2 = {two * (q.x * q.z - q.w * q.y), two * (q.y * q.z + q.w * q.x), one - two * (q.x * q.x + q.y * q.y)};
}

template <class F> DGR_HD Quat<F> quat_rows_vjp(const Quat<F>& q, const Vec3<F>& g0, const Vec3<F>& g1, const Vec3<F>& g2) {
  const F two(2);
  const F a = g1.z + g2.y, b = g0.z + g2.x, c = g0.y + g1.x;  // symmetric parts
  const F d = g2.y - g1.z, e = g0.z - g2.x, f = g1.x - g0.y;  // antisymmetric parts
  return {two * (q.x * d + q.y * e + q.z * f), two * (q.w * d + q.y * c + q.z * b - two * q.x * (g1.y + g2.z)),
          two * (q.w * e + q.x * c + q.z * a - two * q.y * (g0.x + g2.z)),
          two * (q.w * f + q.x * b + q.y * a - two * q.z * (g0.x + g1.y))};
}

// S = M M^T with M = rotation(q) diag(s).
template <class F> DGR_HD Symmetric3<F> covariance(const Vec3<F>& s, const Quat<F>& q) {
  Vec3<F> r0, r1, r2;
  quat_rows(q, r0, r1, r2);
  const Vec3<F> m0{r0.x * s.x, r0.y * s.y, r0.z * s.z}, m1{r1.x * s.x, r1.y * s.y, r1.z * s.z},
      m2{r2.x * s.x, r2.y * s.y, r2.z * s.z};
  return {dot(m0, m0), dot(m0, m1), dot(m0, m2), dot(m1, m1), dot(m1, m2), dot(m2, m2)};
}

// `g` is the gradient of the six stored entries (an off-diagonal one stands for both of its places).
template <class F> DGR_HD void covariance_vjp(const Vec3<F>& s, const Quat<F>& q, const Symmetric3<F>& g, Vec3<F>& grad_s, Quat<F>& grad_q) {
  Vec3<F> r0, r1, r2;
  quat_rows(q, r0, r1, r2);
  const Vec3<F> m0{r0.x * s.x, r0.y * s.y, r0.z * s.z}, m1{r1.x * s.x, r1.y * s.y, r1.z * s.z},
      m2{r2.x * s.x, r2.y * s.y, r2.z * s.z};
  const F two(2);
  // dL/dM = (G + G^T) M, with G + G^T = [2xx xy xz; xy 2yy yz; xz yz 2zz].
  const Vec3<F> d0 = (two * g.xx) * m0 + g.xy * m1 + g.xz * m2, d1 = g.xy * m0 + (two * g.yy) * m1 + g.yz * m2,
                d2 = g.xz * m0 + g.yz * m1 + (two * g.zz) * m2;
  grad_s = {r0.x * d0.x + r1.x * d1.x + r2.x * d2.x, r0.y * d0.y + r1.y * d1.y + r2.y * d2.y,
            r0.z * d0.z + r1.z * d1.z + r2.z * d2.z};
  grad_q = quat_rows_vjp(q, Vec3<F>{d0.x * s.x, d0.y * s.y, d0.z * s.z}, Vec3<F>{d1.x * s.x, d1.y * s.y, d1.z * s.z},
                         Vec3<F>{d2.x * s.x, d2.y * s.y, d2.z * s.z});
}

template <class F> struct Projected {
  F x, y;     // mean in pixels
  F a, b, c;  // conic
  F depth;    // camera z
  F radius;   // whole pixels
  F variance_x, variance_y;  // the diagonal of K
};

template <class F> struct Projection {  // shared by the forward and the backward pass
  Vec3<F> t, p0, p1, s0, s1;            // s0 = S p0, s1 = S p1
  F iz, u, v, uc, vc;
};

template <class F> DGR_HD F along(const Vec3<F>& row, const Vec3<F>& m, F shift) {
  return fused(row.z, m.z, fused(row.x, m.x, product(row.y, m.y))) + shift;
}

// The forward and the backward pass round t, u and v alike, so that the same Gaussians are clamped in both.
template <class F> DGR_HD Projection<F> linearize(const Camera<F>& cam, const Vec3<F>& m, const Symmetric3<F>& s) {
  Projection<F> w;
  w.t = {along(cam.r0, m, cam.p.x), along(cam.r1, m, cam.p.y), along(cam.r2, m, cam.p.z)};
  w.iz = F(1) / w.t.z;
  w.u = product(w.t.x, w.iz);
  w.v = product(w.t.y, w.iz);
  w.uc = at_most(at_least(w.u, cam.u_min), cam.u_max);
  w.vc = at_most(at_least(w.v, cam.v_min), cam.v_max);
  w.p0 = (cam.fx * w.iz) * (cam.r0 - w.uc * cam.r2);
  w.p1 = (cam.fy * w.iz) * (cam.r1 - w.vc * cam.r2);
  w.s0 = times(s, w.p0);
  w.s1 = times(s, w.p1);
  return w;
}

// Returns the mask of Gaussians that touch the image and may show in the window; the fields of the others are
// undefined.
template <class F> DGR_HD auto project(const Camera<F>& cam, const Vec3<F>& m, const Symmetric3<F>& s, Projected<F>& out) {
  const Projection<F> w = linearize(cam, m, s);
  const F kxx = dot(w.p0, w.s0) + F(kLowPass), kxy = dot(w.p0, w.s1), kyy = dot(w.p1, w.s1) + F(kLowPass);
  const F det = kxx * kyy - kxy * kxy;
  const F inv = F(1) / det;
  out.x = cam.fx * w.u + cam.cx;
  out.y = cam.fy * w.v + cam.cy;
  out.a = kyy * inv;
  out.b = F(0) - kxy * inv;
  out.c = kxx * inv;
  out.depth = w.t.z;
  out.variance_x = kxx;
  out.variance_y = kyy;
  const F mid = F(0.5) * (kxx + kyy);
  const F eigenvalue = mid + root(at_least(mid * mid - det, F(kEigenvalueFloor)));
  const F sigma = root(eigenvalue);
  out.radius = round_up(F(kRadiusSigmas) * sigma);
  // Not smaller than the radius: a window that is the whole image culls nothing.
  const F reach = round_up(F(kReachSigmas) * sigma);
  // The square of the radius, rounded out to kCullTile, meets the image. Half a pixel: 3DGS counts from the
  // centre of the first pixel.
  const F px = out.x - F(0.5), py = out.y - F(0.5);
  return (w.t.z > cam.near) & (w.t.z < F(kMaxDepth)) & (det > F(0)) & (out.radius < F(kMaxRadius)) & (px + out.radius >= F(1)) &
         (px - out.radius < cam.width) & (py + out.radius >= F(1)) & (py - out.radius < cam.height) & (px + reach >= cam.left) &
         (px - reach < cam.right) & (py + reach >= cam.top) & (py - reach < cam.bottom);
}

// Columns and rows, inclusive, of the squares of the window that what an opacity of 1 shows may reach; none where the
// last is before the first.
template <class F> struct Reached { F first, last, above, below; };

template <class F> DGR_HD Reached<F> reached(const Squares& squares, const Camera<F>& cam, const Projected<F>& p) {
  const F reach_x = F(kReachSigmas) * root(p.variance_x), reach_y = F(kReachSigmas) * root(p.variance_y);
  const F x = p.x - cam.left, y = p.y - cam.top, share(1.0 / kSquare), one(1);
  return {at_least(round_up((x - reach_x) * share) - one, F(0)), at_most(round_up((x + reach_x) * share) - one, F(squares.across - 1)),
          at_least(round_up((y - reach_y) * share) - one, F(0)), at_most(round_up((y + reach_y) * share) - one, F(squares.down - 1))};
}

// Whether one of them is drawn.
DGR_HD bool any_drawn(const Squares& squares, int first, int last, int above, int below) {
  for (int row = above; row <= below; ++row)
    for (int column = first; column <= last; ++column)
      if (squares.drawn[row * squares.across + column]) return true;
  return false;
}

template <class F> struct CameraGrad { Vec3<F> r0, r1, r2, p; };

// `g` holds the gradient of x, y, conic, depth; outputs are written, not added to.
template <class F>
DGR_HD void project_vjp(const Camera<F>& cam, const Vec3<F>& m, const Symmetric3<F>& s, const Projected<F>& conic, const Projected<F>& g,
                        Vec3<F>& grad_m, Symmetric3<F>& grad_s, CameraGrad<F>& grad_cam) {
  const Projection<F> w = linearize(cam, m, s);
  // K^-1 -> K: dK = -C G C with C the conic and G = [ga gb/2; gb/2 gc].
  const F half(0.5), two(2);
  const F h = half * g.b;
  const F n00 = g.a * conic.a + h * conic.b, n01 = g.a * conic.b + h * conic.c;
  const F n10 = h * conic.a + g.c * conic.b, n11 = h * conic.b + g.c * conic.c;
  const F kxx = F(0) - (conic.a * n00 + conic.b * n10), kyy = F(0) - (conic.b * n01 + conic.c * n11);
  const F kxy = F(0) - two * (conic.a * n01 + conic.b * n11);
  // K -> P and S.
  const Vec3<F> d0 = (two * kxx) * w.s0 + kxy * w.s1, d1 = (two * kyy) * w.s1 + kxy * w.s0;
  const Vec3<F> e0 = kxx * w.p0 + (half * kxy) * w.p1, e1 = kyy * w.p1 + (half * kxy) * w.p0;
  grad_s = {e0.x * w.p0.x + e1.x * w.p1.x,
            two * (e0.x * w.p0.y + e1.x * w.p1.y),
            two * (e0.x * w.p0.z + e1.x * w.p1.z),
            e0.y * w.p0.y + e1.y * w.p1.y,
            two * (e0.y * w.p0.z + e1.y * w.p1.z),
            e0.z * w.p0.z + e1.z * w.p1.z};
  // P -> R, (u, v), z. A clamped u or v has no slope.
  const F fx = cam.fx * w.iz, fy = cam.fy * w.iz;
  const F slope_u = select((w.u > cam.u_min) & (w.u < cam.u_max), fx * dot(cam.r2, d0), F(0));
  const F slope_v = select((w.v > cam.v_min) & (w.v < cam.v_max), fy * dot(cam.r2, d1), F(0));
  const F du = cam.fx * g.x - slope_u, dv = cam.fy * g.y - slope_v;
  const F dz = g.depth - w.iz * (w.u * du + w.v * dv + dot(w.p0, d0) + dot(w.p1, d1));
  const Vec3<F> dt{du * w.iz, dv * w.iz, dz};
  grad_m = dt.x * cam.r0 + dt.y * cam.r1 + dt.z * cam.r2;
  grad_cam.r0 = dt.x * m + fx * d0;
  grad_cam.r1 = dt.y * m + fy * d1;
  grad_cam.r2 = dt.z * m - (fx * w.uc) * d0 - (fy * w.vc) * d1;
  grad_cam.p = dt;
}

}  // namespace DGR_VARIANT
}  // namespace dgr
