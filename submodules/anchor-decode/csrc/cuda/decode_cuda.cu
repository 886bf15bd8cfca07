// CUDA driver, forward: blocks of threads take tiles of anchors through the networks in shared memory. The first kernel
// decodes opacities; sums over anchors, for which the host waits once, say where each anchor's Gaussians go; the second
// decodes the rest for the anchors that keep one.
#include <ATen/ops/cumsum.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <tuple>

#include "driver.cuh"

namespace anchor_decode {
namespace {

template <class T>
__global__ void __launch_bounds__(kThreads)
    opacities(const Scene<T> scene, int tile, T* __restrict__ saved, T* __restrict__ neural, bool* __restrict__ kept) {
  ANCHOR_DECODE_SHARED(T, room);
  const int features = scene.features, stride = features + 4, offsets = scene.offsets;
  const int64_t first = int64_t(blockIdx.x) * tile;
  const int rows = int(scene.visible - first < tile ? scene.visible - first : tile);
  T *const x = room, *const blended = x + tile * stride, *const shares = blended + (scene.bank ? tile * stride : 0);
  T *const hidden = shares + 3 * tile, *const out = hidden + tile * (features > scene.hidden ? features : scene.hidden);
  load(scene, rows, [&](int r) { return scene.rows[first + r]; }, x);
  if (scene.bank) blend_all(scene, rows, x, hidden, shares, blended);
  layers(scene.heads[kOpacity], rows, scene.bank ? blended : x, stride, hidden, out);
  for (int e = threadIdx.x; e < rows * offsets; e += kThreads) {
    const T value = std::tanh(out[e]);
    neural[first * offsets + e] = value;
    if (kept) kept[first * offsets + e] = value > T(0);
  }
  if (!saved) return;
  for (int e = threadIdx.x; e < rows * scene.hidden; e += kThreads)
    saved[(first + e / scene.hidden) * scene.stride + e % scene.hidden] = hidden[e];
}

// The number of Gaussians of each anchor, and whether it has any.
__global__ void __launch_bounds__(kThreads) count_kept(const bool* kept, int64_t visible, int offsets, int64_t* gaussians, int64_t* active) {
  const int64_t m = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (m >= visible) return;
  int64_t n = 0;
  for (int k = 0; k < offsets; ++k) n += kept[m * offsets + k];
  gaussians[m] = n;
  active[m] = n > 0;
}

template <class T>
struct Attributes {
  T *means, *scales, *quats, *opacities, *colors, *shape;  // means and opacities may be null
  const T* neural;
};

template <class T>
__device__ T logistic(T x) {
  return T(1) / (T(1) + std::exp(-x));
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    attributes(const Scene<T> scene, int tile, int64_t n_active, const int64_t* __restrict__ list, const int64_t* __restrict__ ends,
               const bool* __restrict__ kept, T* __restrict__ saved, const Attributes<T> to) {
  ANCHOR_DECODE_SHARED(T, room);
  const int features = scene.features, stride = features + 4, offsets = scene.offsets;
  const int64_t first = int64_t(blockIdx.x) * tile;
  const int rows = int(n_active - first < tile ? n_active - first : tile);
  T *const x = room, *const blended = x + tile * stride, *const shares = blended + (scene.bank ? tile * stride : 0);
  T *const hidden = shares + 3 * tile, *const cov = hidden + tile * (features > scene.hidden ? features : scene.hidden);
  T* const color = cov + tile * 7 * offsets;
  load(scene, rows, [&](int r) { return scene.rows[list[first + r]]; }, x);
  if (scene.bank) blend_all(scene, rows, x, hidden, shares, blended);
  for (const Head head : {kCov, kColor}) {
    layers(scene.heads[head], rows, scene.bank ? blended : x, stride, hidden, head == kCov ? cov : color);
    if (saved) {
      for (int e = threadIdx.x; e < rows * scene.hidden; e += kThreads)
        saved[(2 * (first + e / scene.hidden) + (head == kColor)) * scene.stride + e % scene.hidden] = hidden[e];
    }
    __syncthreads();  // `hidden` is written again
  }
  for (int e = threadIdx.x; e < rows * offsets; e += kThreads) {
    const int r = e / offsets, k = e % offsets;
    const int64_t m = list[first + r], row = scene.rows[m];
    const bool* const keep = kept + m * offsets;
    if (!keep[k]) continue;
    int64_t g = m ? ends[m - 1] : 0;
    for (int i = 0; i < k; ++i) g += keep[i];
    T scales[6], shape[kShape], scale[3], quat[4];
    for (int i = 0; i < 6; ++i) scales[i] = std::exp(scene.log_scale[6 * row + i]);
    for (int i = 0; i < 3; ++i) shape[i] = logistic(cov[7 * e + i]);
    for (int i = 0; i < 4; ++i) quat[i] = cov[7 * e + 3 + i];
    finish_shape(scales + 3, shape, scale, quat);
    for (int i = 0; i < 3; ++i) to.scales[3 * g + i] = scale[i];
    for (int i = 0; i < 4; ++i) to.quats[4 * g + i] = quat[i];
    for (int i = 0; i < kShape; ++i) to.shape[kShape * g + i] = shape[i];
    for (int i = 0; i < 3; ++i) to.colors[3 * g + i] = logistic(color[3 * e + i]);
    if (!to.means) continue;
    place(scene.position + 3 * row, scene.offset + 3 * (row * offsets + k), scales, to.means + 3 * g);
    to.opacities[g] = to.neural[m * offsets + k];
  }
}

using Outputs = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor,
                           at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

template <class T>
Outputs decode_as(const Arguments& a, const Optional& teacher, bool train) {
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  const int64_t offsets = a.offset.size(1), m = a.visible.size(0), width = saved_width(a.hidden);
  const at::Tensor taught = teacher ? teacher->contiguous() : at::Tensor();
  const Packed<T> student(a, a.weights, stream), other(a, teacher ? taught : a.weights, stream);
  const int64_t per_row = student.forward_numbers();
  const int tile = tile_rows(per_row * sizeof(T));
  const int64_t shared = per_row * tile * sizeof(T), tiles = (m + tile - 1) / tile;
  at::Tensor neural = a.empty({m, offsets}), kept = at::empty({m, offsets}, a.position.options().dtype(at::kBool));
  at::Tensor teacher_neural = a.empty({teacher ? m : 0, offsets}), hidden_opacity = a.zeros({train ? m : 0, width});
  T* const no_hidden = nullptr;
  bool* const decided = nullptr;
  launch(opacities<T>, tiles, kThreads, shared, stream, student.scene(), tile, train ? hidden_opacity.mutable_data_ptr<T>() : nullptr,
         neural.mutable_data_ptr<T>(), kept.mutable_data_ptr<bool>());
  if (teacher)
    launch(opacities<T>, tiles, kThreads, shared, stream, other.scene(), tile, no_hidden, teacher_neural.mutable_data_ptr<T>(), decided);

  const Places places = places_of(kept, true, stream);
  const int64_t g = places.gaussians, h = teacher ? g : 0;
  at::Tensor means = a.empty({g, 3}), opacity = a.empty({g, 1}), hidden_rest = a.zeros({train ? places.active : 0, 2, width});
  at::Tensor scales[2] = {a.empty({g, 3}), a.empty({h, 3})}, quats[2] = {a.empty({g, 4}), a.empty({h, 4})};
  at::Tensor colors[2] = {a.empty({g, 3}), a.empty({h, 3})}, shape[2] = {a.empty({g, kShape}), a.empty({h, kShape})};
  const int64_t active_tiles = (places.active + tile - 1) / tile;
  for (int d = 0; d < (teacher ? 2 : 1); ++d) {
    const Attributes<T> to{d ? nullptr : means.mutable_data_ptr<T>(),  scales[d].mutable_data_ptr<T>(), quats[d].mutable_data_ptr<T>(),
                           d ? nullptr : opacity.mutable_data_ptr<T>(), colors[d].mutable_data_ptr<T>(), shape[d].mutable_data_ptr<T>(),
                           neural.const_data_ptr<T>()};
    launch(attributes<T>, active_tiles, kThreads, shared, stream, (d ? other : student).scene(), tile, places.active,
           places.list.const_data_ptr<int64_t>(), places.ends.const_data_ptr<int64_t>(), kept.const_data_ptr<bool>(),
           d || !train ? nullptr : hidden_rest.mutable_data_ptr<T>(), to);
  }
  if (!train) shape[0] = a.empty({0, kShape});
  return {means, scales[0], quats[0], opacity, colors[0], neural, kept, scales[1], quats[1], colors[1], teacher_neural, shape[0], hidden_opacity,
          hidden_rest};
}

Outputs decode(const at::Tensor& position, const at::Tensor& offset, const at::Tensor& feature, const at::Tensor& log_scale,
               const at::Tensor& visible, const at::Tensor& center, const at::Tensor& weights, const Optional& teacher, int64_t hidden,
               int64_t distances, bool bank, bool train) {
  const Arguments given{position, offset, feature, log_scale, visible, center, weights, hidden, distances, bank};
  given.check();
  if (teacher) given.check_weights("teacher", *teacher);
  const c10::cuda::CUDAGuard guard(position.device());
  const Arguments a = given.contiguous();
  return position.scalar_type() == at::kFloat ? decode_as<float>(a, teacher, train) : decode_as<double>(a, teacher, train);
}

}  // namespace

// until[m]: the number of active anchors up to and with m. list: those anchors.
__global__ void __launch_bounds__(kThreads) list_active(const int64_t* counts, const int64_t* until, int64_t visible, int64_t* list) {
  const int64_t m = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (m < visible && counts[m]) list[until[m] - 1] = m;
}

Places places_of(const at::Tensor& kept, bool wait, cudaStream_t stream) {
  const int64_t m = kept.size(0), blocks = (m + kThreads - 1) / kThreads;
  const auto options = kept.options().dtype(at::kLong);
  at::Tensor counts = at::empty({2, m}, options), list = at::empty({m}, options);
  int64_t* const of = counts.mutable_data_ptr<int64_t>();
  launch(count_kept, blocks, kThreads, 0, stream, kept.const_data_ptr<bool>(), m, int(kept.size(1)), of, of + m);
  const at::Tensor sums = at::cumsum(counts, 1);
  const int64_t* const until = sums.const_data_ptr<int64_t>();
  launch(list_active, blocks, kThreads, 0, stream, of + m, until + m, m, list.mutable_data_ptr<int64_t>());
  if (m == 0 || !wait) return {0, 0, list, sums.select(0, 0), sums.select(0, 1)};
  const at::Tensor last = sums.select(1, m - 1).contiguous().cpu();  // the one wait
  const int64_t* const totals = last.const_data_ptr<int64_t>();
  return {totals[0], totals[1], list, sums.select(0, 0), sums.select(0, 1)};
}

}  // namespace anchor_decode

TORCH_LIBRARY_IMPL(anchor_decode, CUDA, m) { m.impl("decode", anchor_decode::decode); }
