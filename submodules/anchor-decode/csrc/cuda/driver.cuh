// What both passes need: packed weights, the size of a tile, where each anchor's Gaussians are.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <algorithm>

#include "../arguments.h"
#include "launch.h"
#include "tile.cuh"

namespace anchor_decode {

// Shared memory of a block that needs no setting of its own.
constexpr int64_t kSharedBytes = 48 * 1024;

// Anchors of a tile, of which each takes `bytes` of shared memory.
inline int tile_rows(int64_t bytes) {
  TORCH_CHECK(bytes <= kSharedBytes, "anchor_decode: a decoder of this size takes ", bytes, " bytes of shared memory for an anchor, expected at most ",
              kSharedBytes);
  return int(std::min<int64_t>(32, kSharedBytes / bytes));
}

// As the CPU's.
inline int64_t saved_width(int64_t hidden) { return (hidden + 15) / 16 * 16; }

// What was kept: the active anchors [M], and for each anchor [M] the number of Gaussians, and of active anchors, up to and
// with it; their totals [2]. All on the device.
struct Places {
  at::Tensor list, ends, active_ends, totals;
};
// `count`: how many anchors there are, if only the device knows it; or null: all that `kept` [M,K] has room for.
Places places_of(const at::Tensor& kept, const int64_t* count, cudaStream_t stream);

namespace {

// columns[c,r] = rows[r,c].
template <class T>
__global__ void __launch_bounds__(kThreads) transpose(const T* __restrict__ rows, int n, int width, T* __restrict__ columns) {
  const int e = blockIdx.x * kThreads + threadIdx.x;
  if (e < n * width) columns[e % width * n + e / width] = rows[e];
}

template <class T>
class Packed {
 public:
  Packed(const Arguments& a, const at::Tensor& weights, const int64_t* count, cudaStream_t stream) : columns_(at::empty_like(weights)) {
    const Layout layout = a.layout();
    TORCH_CHECK(layout.size < 1 << 28, "anchor_decode: a decoder has ", layout.size, " weights, expected fewer than 2^28");
    const T* const row = weights.const_data_ptr<T>();
    T* const columns = columns_.mutable_data_ptr<T>();
    scene_ = {a.visible.size(0), int(a.feature.size(1)), int(a.offset.size(1)), int(a.hidden), int(saved_width(a.hidden)), a.bank,
              a.position.const_data_ptr<T>(), a.offset.const_data_ptr<T>(), a.feature.const_data_ptr<T>(), a.log_scale.const_data_ptr<T>(),
              a.center.const_data_ptr<T>(), a.visible.const_data_ptr<int64_t>(), count, {}};
    for (int h = 0; h < (a.bank ? 4 : 3); ++h) {
      const Part& p = layout.parts[h];
      const int in = int(p.inputs), hidden = int(p.hidden), out = int(p.outputs);
      scene_.heads[h] = {in, hidden, out, row + p.first, row + p.first_bias, row + p.second, row + p.second_bias, columns + p.first,
                         columns + p.second, p.first};
      launch(transpose<T>, (in * hidden + kThreads - 1) / kThreads, kThreads, 0, stream, row + p.first, hidden, in, columns + p.first);
      launch(transpose<T>, (out * hidden + kThreads - 1) / kThreads, kThreads, 0, stream, row + p.second, out, hidden, columns + p.second);
    }
  }

  const Scene<T>& scene() const { return scene_; }

  // Numbers in shared memory for an anchor: inputs, blended inputs, shares, a hidden layer, outputs.
  int64_t forward_numbers() const {
    const int64_t features = scene_.features, hidden = std::max(scene_.features, scene_.hidden);
    return (scene_.bank ? 2 : 1) * (features + 4) + 3 + hidden + 10 * int64_t(scene_.offsets);
  }

  // Inputs, blended inputs, shares and their gradient; a hidden layer and its gradient; those of outputs and inputs; terms
  // of the log scales' gradient.
  int64_t backward_numbers() const {
    const int64_t features = scene_.features, hidden = std::max(scene_.features, scene_.hidden), offsets = scene_.offsets;
    return (scene_.bank ? 2 : 1) * (features + 4) + 6 + 2 * hidden + 11 * offsets + features + 6 * offsets;
  }

 private:
  at::Tensor columns_;
  Scene<T> scene_{};
};

}  // namespace
}  // namespace anchor_decode
