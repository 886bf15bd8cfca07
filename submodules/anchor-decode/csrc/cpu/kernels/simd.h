// Vectors of the variant's width, by the extension that GCC and Clang share: + - * / and comparisons work lane by lane.
#pragma once

#include "../../common/decode.h"
#include "standard.h"

namespace anchor_decode {
inline namespace ANCHOR_DECODE_VARIANT {

#if defined(ANCHOR_DECODE_AVX512)
constexpr int kVectorBytes = 64;
constexpr int kRowsAtATime = 8;  // of a product: 16 of 32 registers hold its sums
#elif defined(ANCHOR_DECODE_AVX2)
constexpr int kVectorBytes = 32;
constexpr int kRowsAtATime = 6;  // 12 of 16
#else
constexpr int kVectorBytes = 16;
constexpr int kRowsAtATime = 4;
#endif

template <class T> struct BitsOf;
template <> struct BitsOf<float> { using Type = int32_t; };
template <> struct BitsOf<double> { using Type = int64_t; };

template <class T>
struct Simd {
  using Int = typename BitsOf<T>::Type;
  typedef T Vec __attribute__((vector_size(kVectorBytes)));
  typedef Int Bits __attribute__((vector_size(kVectorBytes)));
  static constexpr int kLanes = kVectorBytes / sizeof(T);

  static Vec load(const T* from) {  // any alignment
    Vec v;
    std::memcpy(&v, from, sizeof v);
    return v;
  }
  static void store(T* to, Vec v) { std::memcpy(to, &v, sizeof v); }
  static Vec all(T value) { return value - Vec{}; }
};

// e^x within 1.2e-7 of its value; 0 below the smallest normal number, infinite above the largest; NaN stays.
ANCHOR_DECODE_HD Simd<float>::Vec exponential(Simd<float>::Vec x) {
  using V = Simd<float>;
  // Beyond this range the result would not be a normal number: what replaces it is set at the end.
  V::Vec in = x < -87.0f ? V::all(-87.0f) : x;
  in = in > 88.0f ? V::all(88.0f) : in;
  // Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low bits. ln 2 in two parts, the first of
  // which has few bits: its product is exact.
  const V::Vec shifted = in * 1.44269504f + 12582912.0f, n = shifted - 12582912.0f;
  const V::Vec f = (in - n * 0.693359375f) - n * -2.12194440e-4f;
  // Fit of (e^f - 1 - f) / f^2 on [-ln 2 / 2, ln 2 / 2] with the least relative error of e^f (3e-9).
  V::Vec p = f * 1.3814598e-3f + 8.3687169e-3f;
  p = p * f + 4.1668388e-2f;
  p = p * f + 1.6666521e-1f;
  p = p * f + 4.9999993e-1f;
  p = p * f * f + f + 1.0f;
  V::Vec result = (V::Vec)((V::Bits)p + ((V::Bits)shifted << 23));
  result = x < -87.0f ? V::Vec{} : result;
  result = x > 88.0f ? V::all(__builtin_inff()) : result;
  return x == x ? result : x;
}

ANCHOR_DECODE_HD Simd<double>::Vec exponential(Simd<double>::Vec x) {
  for (int lane = 0; lane < Simd<double>::kLanes; ++lane) x[lane] = std::exp(double(x[lane]));
  return x;
}

template <class Vec>
ANCHOR_DECODE_HD Vec sigmoid(Vec x) {
  return 1 / (1 + exponential(-x));
}

ANCHOR_DECODE_HD Simd<float>::Vec hyperbolic_tangent(Simd<float>::Vec x) {
  using V = Simd<float>;
  const V::Vec size = x < 0.0f ? -x : x, square = x * x;
  const V::Vec large = 1.0f - 2.0f / (1.0f + exponential(2.0f * size));
  // Fit of (tanh(x) / x - 1) / x^2 on [0, 0.6], of relative error 3e-9: the difference above would lose small values.
  V::Vec p = square * -5.9058679e-3f + 2.0805384e-2f;
  p = p * square + -5.3786683e-2f;
  p = p * square + 1.3331958e-1f;
  p = p * square + -3.3333299e-1f;
  const V::Vec small = p * square * x + x;
  return size < 0.6f ? small : (x < 0.0f ? -large : large);
}

ANCHOR_DECODE_HD Simd<double>::Vec hyperbolic_tangent(Simd<double>::Vec x) {
  for (int lane = 0; lane < Simd<double>::kLanes; ++lane) x[lane] = std::tanh(double(x[lane]));
  return x;
}

// values[i] = f(values[i]); nothing beyond `count` is touched.
template <class T, class F>
ANCHOR_DECODE_HD void each(T* values, int64_t count, F f) {
  using V = Simd<T>;
  int64_t i = 0;
  for (; i + V::kLanes <= count; i += V::kLanes) V::store(values + i, f(V::load(values + i)));
  if (i == count) return;
  T rest[V::kLanes] = {};
  std::memcpy(rest, values + i, (count - i) * sizeof(T));
  V::store(rest, f(V::load(rest)));
  std::memcpy(values + i, rest, (count - i) * sizeof(T));
}

}  // namespace ANCHOR_DECODE_VARIANT
}  // namespace anchor_decode
