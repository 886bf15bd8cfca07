// Real spherical harmonics up to degree 3 on a unit direction, with the signs and order of 3DGS codebases.
#pragma once

#include "scalar.h"

namespace dgr {
inline namespace DGR_VARIANT {

constexpr int kMaxShDegree = 3;

constexpr int sh_count(int degree) { return (degree + 1) * (degree + 1); }

// Normalisation constants of the basis: sqrt((2l+1)/(4 pi) (l-m)!/(l+m)!) with the polynomial's own factor.
constexpr double kSh0 = 0.28209479177387814;
constexpr double kSh1 = 0.4886025119029199;
constexpr double kSh2a = 1.0925484305920792, kSh2b = 0.31539156525252005, kSh2c = 0.5462742152960396;
constexpr double kSh3a = 0.5900435899266435, kSh3b = 2.890611442640554, kSh3c = 0.4570457994644658, kSh3d = 0.3731763325901154;
constexpr double kSh3e = 1.445305721320277;

template <class F> DGR_HD void sh_basis(int degree, const Vec3<F>& d, F* out) {
  const F x = d.x, y = d.y, z = d.z;
  out[0] = F(kSh0);
  if (degree < 1) return;
  out[1] = F(-kSh1) * y;
  out[2] = F(kSh1) * z;
  out[3] = F(-kSh1) * x;
  if (degree < 2) return;
  const F xx = x * x, yy = y * y, zz = z * z;
  out[4] = F(kSh2a) * x * y;
  out[5] = F(-kSh2a) * y * z;
  out[6] = F(kSh2b) * (F(2) * zz - xx - yy);
  out[7] = F(-kSh2a) * x * z;
  out[8] = F(kSh2c) * (xx - yy);
  if (degree < 3) return;
  out[9] = F(-kSh3a) * y * (F(3) * xx - yy);
  out[10] = F(kSh3b) * x * y * z;
  out[11] = F(-kSh3c) * y * (F(4) * zz - xx - yy);
  out[12] = F(kSh3d) * z * (F(2) * zz - F(3) * xx - F(3) * yy);
  out[13] = F(-kSh3c) * x * (F(4) * zz - xx - yy);
  out[14] = F(kSh3e) * z * (xx - yy);
  out[15] = F(-kSh3a) * x * (xx - F(3) * yy);
}

// Gradient of the direction, given the gradient of the basis values.
template <class F> DGR_HD Vec3<F> sh_basis_vjp(int degree, const Vec3<F>& d, const F* g) {
  const F x = d.x, y = d.y, z = d.z;
  Vec3<F> r{F(0), F(0), F(0)};
  if (degree < 1) return r;
  r = {F(-kSh1) * g[3], F(-kSh1) * g[1], F(kSh1) * g[2]};
  if (degree < 2) return r;
  const F a4 = F(kSh2a) * g[4], a5 = F(kSh2a) * g[5], a6 = F(2 * kSh2b) * g[6], a7 = F(kSh2a) * g[7],
          a8 = F(2 * kSh2c) * g[8];
  r.x = r.x + a4 * y - a6 * x - a7 * z + a8 * x;
  r.y = r.y + a4 * x - a5 * z - a6 * y - a8 * y;
  r.z = r.z - a5 * y + F(2) * a6 * z - a7 * x;
  if (degree < 3) return r;
  const F xx = x * x, yy = y * y, zz = z * z;
  const F b9 = F(-3 * kSh3a) * g[9], b10 = F(kSh3b) * g[10], b11 = F(-kSh3c) * g[11], b12 = F(3 * kSh3d) * g[12],
          b13 = F(-kSh3c) * g[13], b14 = F(kSh3e) * g[14], b15 = F(-3 * kSh3a) * g[15];
  const F two(2);
  r.x = r.x + b9 * two * x * y + b10 * y * z - b11 * two * x * y - b12 * two * x * z + b13 * (F(4) * zz - F(3) * xx - yy) +
        b14 * two * x * z + b15 * (xx - yy);
  r.y = r.y + b9 * (xx - yy) + b10 * x * z + b11 * (F(4) * zz - xx - F(3) * yy) - b12 * two * y * z - b13 * two * x * y -
        b14 * two * y * z - b15 * two * x * y;
  r.z = r.z + b10 * x * y + b11 * F(8) * y * z + b12 * (two * zz - xx - yy) + b13 * F(8) * x * z + b14 * (xx - yy);
  return r;
}

// v / |v|; the zero vector stays zero, with a zero gradient.
template <class F> DGR_HD Vec3<F> normalize(const Vec3<F>& v, F& inverse_length) {
  const F square = dot(v, v);
  inverse_length = square > F(0) ? F(1) / root(square) : F(0);
  return inverse_length * v;
}

template <class F> DGR_HD Vec3<F> normalize_vjp(const Vec3<F>& unit, F inverse_length, const Vec3<F>& g) {
  return inverse_length * (g - dot(unit, g) * unit);
}

}  // namespace DGR_VARIANT
}  // namespace dgr
