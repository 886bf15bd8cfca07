// Vectors of the variant's width, by the extension that GCC and Clang share: + - * / work lane by lane.
#pragma once

#include "../../common/ssim.h"
#include "standard.h"

namespace fused_ssim {
inline namespace FUSED_SSIM_VARIANT {

#if defined(FUSED_SSIM_AVX512)
constexpr int kVectorBytes = 64;
#elif defined(FUSED_SSIM_AVX2)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <typename T>
struct Simd {
  typedef T Vec __attribute__((vector_size(kVectorBytes)));
  static constexpr int kLanes = kVectorBytes / sizeof(T);

  static Vec load(const T* from) {  // any alignment
    Vec v;
    std::memcpy(&v, from, sizeof v);
    return v;
  }
  static void store(T* to, Vec v) { std::memcpy(to, &v, sizeof v); }

  // sums[i] += v[i]
  static void add(double* sums, Vec v) {
    typedef double Sums __attribute__((vector_size(kVectorBytes)));
    constexpr int kAtOnce = kVectorBytes / sizeof(double);
    typedef T Part __attribute__((vector_size(kAtOnce * sizeof(T))));
    Part parts[kLanes / kAtOnce];
    std::memcpy(parts, &v, sizeof v);
    for (const Part& part : parts) {
      Sums sum;
      std::memcpy(&sum, sums, sizeof sum);
      sum += __builtin_convertvector(part, Sums);
      std::memcpy(sums, &sum, sizeof sum);
      sums += kAtOnce;
    }
  }
};

}  // namespace FUSED_SSIM_VARIANT
}  // namespace fused_ssim
