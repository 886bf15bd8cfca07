// Vectors of the variant's width, by the extension that GCC and Clang share: + - * / work lane by lane.
#pragma once

#include "../../common/nearest.h"
#include "standard.h"

namespace simple_knn {
inline namespace SIMPLE_KNN_VARIANT {

#if defined(SIMPLE_KNN_AVX512)
constexpr int kVectorBytes = 64;
#elif defined(SIMPLE_KNN_AVX2)
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
};

}  // namespace SIMPLE_KNN_VARIANT
}  // namespace simple_knn
