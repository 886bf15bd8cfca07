// A block's tile of anchors in shared memory, and the networks on it. All threads of the block call every function; each
// ends with a barrier.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "../common/decode.h"

#if defined(__CUDACC__)
#define ANCHOR_DECODE_SHARED(T, name)                \
  extern __shared__ __align__(16) char room_bytes[]; \
  T* const name = reinterpret_cast<T*>(room_bytes)
#else
#define ANCHOR_DECODE_SHARED(T, name) T* const name = (T*)cuda_emulator::dynamic_shared()
#endif

namespace anchor_decode {
inline namespace ANCHOR_DECODE_VARIANT {

constexpr int kThreads = 256;

// Two layers as torch keeps them, and with rows and columns exchanged, so that neighbouring threads read neighbours.
template <class T>
struct Network {
  int inputs, hidden, outputs;
  const T *first, *first_bias, *second, *second_bias;  // [hidden,inputs], [hidden], [outputs,hidden], [outputs]
  const T *first_columns, *second_columns;             // [inputs,hidden], [hidden,outputs]
  int64_t at;                                          // where its part begins in the row of weights
};

enum Head { kOpacity, kCov, kColor, kBank, kHeads };

template <class T>
struct Scene {
  int64_t visible;
  int features, offsets, hidden, stride;  // stride: of saved hidden layers
  bool bank;
  const T *position, *offset, *feature, *log_scale, *center;
  const int64_t *rows, *count;  // count: how many of the rows there are, where only the device knows; or null: all
  Network<T> heads[kHeads];

  __device__ int64_t anchors() const { return count && *count < visible ? *count : visible; }
};

// out[r,o] = bias[o] + sum over k of x[r,k] columns[k,o].
template <class T>
__device__ void linear(int rows, int depth, int width, const T* x, int stride, const T* columns, const T* bias, bool relu, T* out) {
  for (int e = threadIdx.x; e < rows * width; e += kThreads) {
    const int r = e / width, o = e % width;
    T sum = bias[o];
    for (int k = 0; k < depth; ++k) sum += x[r * stride + k] * columns[k * width + o];
    out[e] = relu && sum < T(0) ? T(0) : sum;
  }
  __syncthreads();
}

template <class T>
__device__ void layers(const Network<T>& net, int rows, const T* x, int stride, T* hidden, T* out) {
  linear(rows, net.inputs, net.hidden, x, stride, net.first_columns, net.first_bias, true, hidden);
  linear(rows, net.hidden, net.outputs, hidden, net.hidden, net.second_columns, net.second_bias, false, out);
}

// Inputs of the networks: feature, direction, distance. `row(r)`: the anchor of row r.
template <class T, class F>
__device__ void load(const Scene<T>& scene, int rows, F row, T* x) {
  const int stride = scene.features + 4;
  for (int e = threadIdx.x; e < rows * scene.features; e += kThreads) {
    const int r = e / scene.features, j = e % scene.features;
    x[r * stride + j] = scene.feature[row(r) * scene.features + j];
  }
  for (int r = threadIdx.x; r < rows; r += kThreads) look(scene.position + 3 * row(r), scene.center, x + r * stride + scene.features);
  __syncthreads();
}

// With a feature bank, the blended inputs: shares [rows,3], hidden [rows,features].
template <class T>
__device__ void blend_all(const Scene<T>& scene, int rows, const T* x, T* hidden, T* shares, T* blended) {
  const int features = scene.features, stride = features + 4;
  layers(scene.heads[kBank], rows, x + features, stride, hidden, shares);
  for (int r = threadIdx.x; r < rows; r += kThreads) softmax(shares + 3 * r);
  __syncthreads();
  for (int e = threadIdx.x; e < rows * stride; e += kThreads) {
    const int r = e / stride, j = e % stride;
    blended[e] = j < features ? blend(x + r * stride, shares + 3 * r, int64_t(j), int64_t(features)) : x[e];
  }
  __syncthreads();
}

}  // namespace ANCHOR_DECODE_VARIANT
}  // namespace anchor_decode
