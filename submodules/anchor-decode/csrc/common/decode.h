// One anchor and one Gaussian: what the networks' numbers mean, and the derivatives. Plain C++17: no torch, no device,
// no threads.
//
// The networks themselves are matrix products, which every driver arranges for its machine.
#pragma once

#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define ANCHOR_DECODE_HD __host__ __device__ __forceinline__
#else
#define ANCHOR_DECODE_HD inline __attribute__((always_inline))
#endif

// The CPU's kernels are compiled once for each instruction set into one library (cpu/v3.cpp, cpu/v4.cpp). If two
// of them had a function of the same name, the linker would keep only one, perhaps for the wrong CPU: the inline
// namespace separates them.
#if !defined(ANCHOR_DECODE_VARIANT)
#define ANCHOR_DECODE_VARIANT plain
#endif

namespace anchor_decode {
inline namespace ANCHOR_DECODE_VARIANT {

// A quaternion shorter than this is divided by it instead of by its length, as torch's `normalize` does.
constexpr double kShortest = 1e-12;

// `to`: the unit vector from the camera to the anchor, then the distance.
template <class T>
ANCHOR_DECODE_HD void look(const T* position, const T* center, T* to) {
  const T x = position[0] - center[0], y = position[1] - center[1], z = position[2] - center[2];
  const T distance = std::sqrt(x * x + y * y + z * z);
  to[0] = x / distance;
  to[1] = y / distance;
  to[2] = z / distance;
  to[3] = distance;
}

// The feature bank: entry j of every 4th entry tiled 4 times, of every 2nd tiled twice, and of the feature itself.
struct Strides {
  int64_t coarse, middle;
};
ANCHOR_DECODE_HD Strides strides_of(int64_t j, int64_t features) { return {4 * (j % (features / 4)), 2 * (j % (features / 2))}; }

template <class T>
ANCHOR_DECODE_HD T blend(const T* feature, const T* weight, int64_t j, int64_t features) {
  const Strides from = strides_of(j, features);
  return feature[from.coarse] * weight[0] + feature[from.middle] * weight[1] + feature[j] * weight[2];
}

// Three logits become three shares of one; their gradient from that of the shares.
template <class T>
ANCHOR_DECODE_HD void softmax(T* x) {
  const T largest = x[0] > x[1] ? (x[0] > x[2] ? x[0] : x[2]) : (x[1] > x[2] ? x[1] : x[2]);
  T sum = 0;
  for (int i = 0; i < 3; ++i) sum += x[i] = std::exp(x[i] - largest);
  for (int i = 0; i < 3; ++i) x[i] /= sum;
}
template <class T>
ANCHOR_DECODE_HD void softmax_vjp(const T* share, T* d) {
  const T mean = share[0] * d[0] + share[1] * d[1] + share[2] * d[2];
  for (int i = 0; i < 3; ++i) d[i] = share[i] * (d[i] - mean);
}

// What a Gaussian's gradient needs besides its attributes: the three scales as shares of the anchor's bound, then one
// over the length of the quaternion.
constexpr int kShape = 4;

// `shape` holds the shares already. Writes the rest of it, the scales and the unit quaternion, in place.
template <class T>
ANCHOR_DECODE_HD void finish_shape(const T* bound, T* shape, T* scale, T* quat) {
  for (int i = 0; i < 3; ++i) scale[i] = bound[i] * shape[i];
  const T length = std::sqrt(quat[0] * quat[0] + quat[1] * quat[1] + quat[2] * quat[2] + quat[3] * quat[3]);
  const T inverse = T(1) / (length > T(kShortest) ? length : T(kShortest));
  for (int i = 0; i < 4; ++i) quat[i] *= inverse;
  shape[3] = inverse;
}

template <class T>
ANCHOR_DECODE_HD void place(const T* position, const T* offset, const T* scales, T* mean) {
  for (int i = 0; i < 3; ++i) mean[i] = position[i] + offset[i] * scales[i];
}

// One Gaussian's attributes or their gradients, each at its first entry.
template <class T>
struct Of {
  const T *mean, *scale, *quat, *color;
};

// Of one Gaussian: gradients of its offset and, as terms of sums, of the anchor's six log scales; of the seven outputs of
// head `cov` and the three of `color` before their activations.
template <class T>
struct GaussianGrad {
  T offset[3], log_scale[6], cov[7], color[3];
};

// `scales`: the anchor's; `value.mean` is not read.
template <class T>
ANCHOR_DECODE_HD GaussianGrad<T> gaussian_vjp(const T* scales, const T* offset, const T* shape, const Of<T>& value, const Of<T>& grad) {
  GaussianGrad<T> d;
  for (int i = 0; i < 3; ++i) {
    d.offset[i] = grad.mean[i] * scales[i];
    d.log_scale[i] = d.offset[i] * offset[i];
    d.log_scale[3 + i] = grad.scale[i] * value.scale[i];
    d.cov[i] = d.log_scale[3 + i] * (T(1) - shape[i]);
    d.color[i] = grad.color[i] * value.color[i] * (T(1) - value.color[i]);
  }
  const T *u = value.quat, *g = grad.quat, inverse = shape[3];
  const T along = inverse < T(1 / kShortest) ? u[0] * g[0] + u[1] * g[1] + u[2] * g[2] + u[3] * g[3] : T(0);
  for (int i = 0; i < 4; ++i) d.cov[3 + i] = inverse * (g[i] - u[i] * along);
  return d;
}

}  // namespace ANCHOR_DECODE_VARIANT
}  // namespace anchor_decode
