// The types and functions that the shared formulas use.
//
// Everything in common/ is a template on F, the "scalar". F is float or double on one Gaussian (or one Gaussian at
// one pixel), or a SIMD vector of several of them (cpu/simd.h overloads the names below). So the formulas
// never branch on data: they compute both sides and `select`.
#pragma once

#include <cmath>

#include "variant.h"

#if defined(__CUDACC__)
#define DGR_HD __host__ __device__ __forceinline__
#else
#define DGR_HD inline __attribute__((always_inline))
#endif

namespace dgr {
inline namespace DGR_VARIANT {

DGR_HD float select(bool mask, float a, float b) { return mask ? a : b; }
DGR_HD double select(bool mask, double a, double b) { return mask ? a : b; }
// Named apart from std:: so that no implicit conversion can pick a wrong overload.
DGR_HD float root(float x) { return std::sqrt(x); }
DGR_HD double root(double x) { return std::sqrt(x); }
DGR_HD float round_up(float x) { return std::ceil(x); }
DGR_HD double round_up(double x) { return std::ceil(x); }
DGR_HD float round_down(float x) { return std::floor(x); }
DGR_HD double round_down(double x) { return std::floor(x); }
DGR_HD float magnitude(float x) { return std::fabs(x); }
DGR_HD double magnitude(double x) { return std::fabs(x); }
// On a GPU in float: the hardware's approximations (2 ulp), without the steps that make 1 / x exact and denormal
// powers right. Neither is ever needed: x is 1 - alpha, and powers under 1/255 are dropped.
DGR_HD float reciprocal(float x) {
#if defined(__CUDA_ARCH__)
  return __fdividef(1.0f, x);
#else
  return 1.0f / x;
#endif
}
DGR_HD double reciprocal(double x) { return 1.0 / x; }
DGR_HD float power_of_two(float x) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return std::exp2(x);
#endif
}
DGR_HD double power_of_two(double x) { return std::exp2(x); }

// A product that is never fused with a sum. Where two kernels evaluate a formula and must agree to the last bit: the
// compiler is free to fuse each copy differently.
DGR_HD float product(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}
DGR_HD double product(double a, double b) {
#if defined(__CUDA_ARCH__)
  return __dmul_rn(a, b);
#else
  return a * b;
#endif
}

// A NaN in `x` becomes `limit`: comparisons with NaN are false.
template <class F> DGR_HD F at_least(F x, F limit) { return select(x > limit, x, limit); }
template <class F> DGR_HD F at_most(F x, F limit) { return select(x < limit, x, limit); }

template <class F> struct Vec3 { F x, y, z; };

template <class F> DGR_HD F dot(const Vec3<F>& a, const Vec3<F>& b) { return a.x * b.x + a.y * b.y + a.z * b.z; }
template <class F> DGR_HD Vec3<F> operator*(F s, const Vec3<F>& a) { return {s * a.x, s * a.y, s * a.z}; }
template <class F> DGR_HD Vec3<F> operator+(const Vec3<F>& a, const Vec3<F>& b) {
  return {a.x + b.x, a.y + b.y, a.z + b.z};
}
template <class F> DGR_HD Vec3<F> operator-(const Vec3<F>& a, const Vec3<F>& b) {
  return {a.x - b.x, a.y - b.y, a.z - b.z};
}

}  // namespace DGR_VARIANT
}  // namespace dgr
