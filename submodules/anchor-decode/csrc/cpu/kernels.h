// Called by the driver: the passes over ranges of anchors, compiled once for each instruction set (kernels/decode.h by
// v3.cpp, v4.cpp and plain.cpp). Plain pointers and numbers: no torch, no threads, and no type whose layout or code
// depends on the instruction set.
#pragma once

#include <cstdint>

#include "cpu_variants.h"

namespace anchor_decode {

// The width of every matrix is rounded up to this, a multiple of every variant's vectors.
constexpr int64_t kPad = 16;
// Always inlined: a copy that the linker shared between the variants might need a CPU that is not there.
__attribute__((always_inline)) constexpr int64_t padded(int64_t n) { return (n + kPad - 1) / kPad * kPad; }

// Anchors of a task of the forward pass: enough for threads to share, too many to fetch the weights anew each time.
constexpr int64_t kUnit = 256;
// Anchors that go through the networks together: what they need then stays in the second cache.
constexpr int64_t kTile = 64;

// Two linear layers with a ReLU between them, packed: widths of rows are padded with zeros.
template <class T>
struct Network {
  int64_t inputs, hidden, outputs;
  const T *first, *first_bias;    // [inputs,hidden], [hidden]
  const T *second, *second_bias;  // [hidden,outputs], [outputs]
  // For the gradient: the same with rows and columns exchanged, the first layer for the features alone.
  const T *first_rows, *second_rows;  // [hidden,features], [outputs,hidden]
};

// The sums that make the gradient of a network; widths as above.
template <class T>
struct NetworkGrad {
  T *first, *first_bias;          // [inputs,hidden], [hidden]
  T *second_rows, *second_bias;   // [outputs,hidden], [outputs]
};

enum Head { kOpacity, kCov, kColor, kBank, kHeads };

template <class T>
struct Decoder {
  Network<T> heads[kHeads];
  bool bank;
};

// The Gaussians' attributes, [G,...] each.
template <class T>
struct Attributes {
  T *means, *scales, *quats, *opacities, *colors;
  T* shape;           // [G,4], common/decode.h
  T* neural_opacity;  // [M,K]
};

template <class T>
struct Scene {
  int64_t visible, features, offsets;  // M, F, K
  const T *position, *offset, *feature, *log_scale, *center;
  const int64_t* rows;  // [M]
};

// First active anchor (one with a Gaussian) and first Gaussian of each unit.
struct Start {
  int64_t active, gaussian;
};

template <class T>
struct Forward {
  Scene<T> scene;
  const Decoder<T>* decoders;  // the student, then perhaps the teacher
  int n_decoders;
  bool* kept;                // [M,K]
  Start* starts;             // [units + 1]; the first pass leaves each unit's counts in it
  Attributes<T> to[2];       // means and opacities of the student alone
  T *hidden_opacity, *hidden_rest;  // [M,hidden], [A,2,hidden], padded, of the student; null: not wanted
};

template <class T>
struct Backward {
  Scene<T> scene;
  const Decoder<T>* decoder;
  const bool* kept;
  const Start* starts;
  const T *hidden_opacity, *hidden_rest;
  Attributes<const T> value, grad;  // grad.neural_opacity may be null
  T *d_offset, *d_feature, *d_log_scale;  // [N,...], zero unless `ascending`; rows of visible anchors are written
  int64_t anchors;                        // N
  bool ascending;                         // so are the visible rows; then all rows are written
  const NetworkGrad<T>* d_networks;       // [groups][kHeads], zero
  int64_t units_per_group;
};

struct Kernels {
  // For the units [begin, end): neural opacities, what is kept, and the counts.
  void (*opacities_float)(const Forward<float>&, int64_t begin, int64_t end);
  void (*opacities_double)(const Forward<double>&, int64_t begin, int64_t end);
  // The other attributes, when `starts` are sums.
  void (*attributes_float)(const Forward<float>&, int64_t begin, int64_t end);
  void (*attributes_double)(const Forward<double>&, int64_t begin, int64_t end);
  // Gradients, for the groups of units [begin, end).
  void (*gradients_float)(const Backward<float>&, int64_t begin, int64_t end);
  void (*gradients_double)(const Backward<double>&, int64_t begin, int64_t end);

  auto opacities(float) const { return opacities_float; }
  auto opacities(double) const { return opacities_double; }
  auto attributes(float) const { return attributes_float; }
  auto attributes(double) const { return attributes_double; }
  auto gradients(float) const { return gradients_float; }
  auto gradients(double) const { return gradients_double; }
};

#if defined(CPU_KERNELS_BY_CPU)
extern const Kernels kernels_v3, kernels_v4;
#else
extern const Kernels kernels_plain;
#endif

}  // namespace anchor_decode
