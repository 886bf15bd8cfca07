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

// For formulas that two kernels evaluate and that must agree to the last bit, since both decide by them: nvcc is free
// to fuse a product and a sum in one copy of an expression and not in the other. On a GPU these are single instructions
// that it leaves as they are: a product and a difference that are never fused, and a b + c that always is. On a CPU
// they are plain expressions, as every kernel of a variant is compiled from them in the same way.
#if defined(__CUDA_ARCH__)
#define DGR_ROUNDED(on_gpu, expression) return on_gpu
#else
#define DGR_ROUNDED(on_gpu, expression) return expression
#endif
DGR_HD float product(float a, float b) { DGR_ROUNDED(__fmul_rn(a, b), a * b); }
DGR_HD double product(double a, double b) { DGR_ROUNDED(__dmul_rn(a, b), a * b); }
DGR_HD float difference(float a, float b) { DGR_ROUNDED(__fsub_rn(a, b), a - b); }
DGR_HD double difference(double a, double b) { DGR_ROUNDED(__dsub_rn(a, b), a - b); }
DGR_HD float fused(float a, float b, float c) { DGR_ROUNDED(__fmaf_rn(a, b, c), a * b + c); }
DGR_HD double fused(double a, double b, double c) { DGR_ROUNDED(__fma_rn(a, b, c), a * b + c); }
#undef DGR_ROUNDED
template <class F> DGR_HD F product(F a, F b) { return a * b; }
template <class F> DGR_HD F difference(F a, F b) { return a - b; }
template <class F> DGR_HD F fused(F a, F b, F c) { return a * b + c; }

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
