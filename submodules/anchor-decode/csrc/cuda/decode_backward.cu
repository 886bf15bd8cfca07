// CUDA driver, backward: each block takes a range of visible anchors, tile by tile, and sums the networks' gradient for
// itself; a second kernel adds the blocks' sums in their order. The ranges depend on the number of anchors alone.
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <tuple>
#include <vector>

#include "driver.cuh"

namespace anchor_decode {
namespace {

constexpr int64_t kGroups = 512;  // blocks at most: the gradients that they sum take this many rows of weights

template <class T>
struct Saved {
  const bool* kept;
  const int64_t *ends, *active_ends;
  int64_t gaussians, active;
  const T *scales, *quats, *colors, *neural, *shape, *hidden_opacity, *hidden_rest;
  const T *d_means, *d_scales, *d_quats, *d_opacities, *d_colors, *d_neural;  // d_neural may be null
};

template <class T>
struct Gradients {
  T *offset, *feature, *log_scale;  // rows of visible anchors are written
  T* weights;                       // [groups,weights], zero
  int64_t n_weights;
};

// d_in = (d_out W) where the hidden unit was on; one layer. `mask`: the hidden layer, or null.
template <class T>
__device__ void linear_back(int rows, int outputs, int inputs, int used, const T* d_out, const T* weight, const T* mask, bool add, T* d_in) {
  for (int e = threadIdx.x; e < rows * used; e += kThreads) {
    const int r = e / used, i = e % used;
    T sum = add ? d_in[e] : T(0);
    for (int o = 0; o < outputs; ++o) sum += d_out[r * outputs + o] * weight[o * inputs + i];
    d_in[e] = mask && mask[e] <= T(0) ? T(0) : sum;
  }
  __syncthreads();
}

// weight[o,i] += sum over rows of d_out[r,o] in[r,i]; bias[o] += sum of d_out.
template <class T>
__device__ void add_products(int rows, int outputs, int inputs, const T* d_out, const T* in, int stride, T* weight, T* bias) {
  for (int e = threadIdx.x; e < outputs * inputs; e += kThreads) {
    const int o = e / inputs, i = e % inputs;
    T sum = weight[e];
    for (int r = 0; r < rows; ++r) sum += d_out[r * outputs + o] * in[r * stride + i];
    weight[e] = sum;
  }
  for (int o = threadIdx.x; o < outputs; o += kThreads) {
    T sum = bias[o];
    for (int r = 0; r < rows; ++r) sum += d_out[r * outputs + o];
    bias[o] = sum;
  }
  __syncthreads();
}

// A network's part of the row of weights, and the gradient of its inputs' first `used` entries (null: not wanted).
template <class T>
__device__ void network_back(const Network<T>& net, int rows, const T* x, int stride, const T* hidden, const T* d_out, T* d_hidden, int used,
                             bool add, T* d_in, T* group) {
  T* const first = group + net.at;
  T* const second = first + net.hidden * net.inputs + net.hidden;
  linear_back(rows, net.outputs, net.hidden, net.hidden, d_out, net.second, hidden, false, d_hidden);
  add_products(rows, net.outputs, net.hidden, d_out, hidden, net.hidden, second, second + net.outputs * net.hidden);
  add_products(rows, net.hidden, net.inputs, d_hidden, x, stride, first, first + net.hidden * net.inputs);
  if (d_in) linear_back(rows, net.hidden, net.inputs, used, d_hidden, net.first, static_cast<const T*>(nullptr), add, d_in);
}

// Of one tile, in shared memory.
template <class T>
struct Room {
  T *x, *blended, *shares, *d_shares, *hidden, *d_hidden, *opacity, *cov, *color, *d_in, *terms;

  __device__ Room(const Scene<T>& scene, int tile, T* at) {
    const int stride = scene.features + 4, width = scene.features > scene.hidden ? scene.features : scene.hidden;
    const auto take = [&at, tile](int numbers) {
      T* const here = at;
      at += int64_t(numbers) * tile;
      return here;
    };
    x = take(stride);
    blended = scene.bank ? take(stride) : x;
    shares = take(3);
    d_shares = take(3);
    hidden = take(width);
    d_hidden = take(width);
    opacity = take(scene.offsets);
    cov = take(7 * scene.offsets);
    color = take(3 * scene.offsets);
    d_in = take(scene.features);
    terms = take(6 * scene.offsets);
  }
};

// Gradients before the activations, those of the offsets, and each Gaussian's terms of the log scales' gradient.
template <class T>
__device__ void gaussians_back(const Scene<T>& scene, const Saved<T>& s, int64_t first, int rows, const Room<T>& room, T* d_offsets) {
  const int offsets = scene.offsets;
  for (int e = threadIdx.x; e < rows * offsets; e += kThreads) {
    const int k = e % offsets;
    const int64_t m = first + e / offsets, row = scene.rows[m];
    const bool* const keep = s.kept + m * offsets;
    int64_t g = m ? s.ends[m - 1] : 0;
    for (int i = 0; i < k; ++i) g += keep[i];
    const bool exists = keep[k] && g < s.gaussians;
    const T value = s.neural[m * offsets + k];
    T d = s.d_neural ? s.d_neural[m * offsets + k] : T(0);
    GaussianGrad<T> grad{};
    if (exists) {
      d += s.d_opacities[g];
      T scales[6];
      for (int i = 0; i < 6; ++i) scales[i] = std::exp(scene.log_scale[6 * row + i]);
      const int64_t at = 3 * (row * offsets + k);
      const Of<T> of{nullptr, s.scales + 3 * g, s.quats + 4 * g, s.colors + 3 * g};
      const Of<T> d_of{s.d_means + 3 * g, s.d_scales + 3 * g, s.d_quats + 4 * g, s.d_colors + 3 * g};
      grad = gaussian_vjp(scales, scene.offset + at, s.shape + kShape * g, of, d_of);
      for (int i = 0; i < 3; ++i) d_offsets[at + i] = grad.offset[i];
    }
    room.opacity[e] = d * (T(1) - value * value);
    for (int i = 0; i < 7; ++i) room.cov[7 * e + i] = grad.cov[i];
    for (int i = 0; i < 3; ++i) room.color[3 * e + i] = grad.color[i];
    for (int i = 0; i < 6; ++i) room.terms[6 * e + i] = grad.log_scale[i];
  }
  __syncthreads();
}

// d_in, of the blended features, becomes that of the features; the bank's own gradient is added.
template <class T>
__device__ void unblend(const Scene<T>& scene, int rows, const Room<T>& room, T* group, T* d_features, const int64_t* anchors) {
  const int features = scene.features, stride = features + 4, quarter = features / 4, half = features / 2;
  for (int e = threadIdx.x; e < rows * features; e += kThreads) {
    const int r = e / features, j = e % features;
    const T *const d = room.d_in + r * features, *const share = room.shares + 3 * r;
    T sum = share[2] * d[j];
    for (int t = j / 4; j % 4 == 0 && t < features; t += quarter) sum += share[0] * d[t];
    for (int t = j / 2; j % 2 == 0 && t < features; t += half) sum += share[1] * d[t];
    d_features[anchors[r] * features + j] = sum;
  }
  for (int e = threadIdx.x; e < 3 * rows; e += kThreads) {
    const int r = e / 3, i = e % 3;
    T sum = 0;
    for (int j = 0; j < features; ++j) {
      const Strides from = strides_of(j, features);
      sum += room.d_in[r * features + j] * room.x[r * stride + (i == 0 ? from.coarse : i == 1 ? from.middle : j)];
    }
    room.d_shares[e] = sum;
  }
  __syncthreads();
  for (int r = threadIdx.x; r < rows; r += kThreads) softmax_vjp(room.shares + 3 * r, room.d_shares + 3 * r);
  // The bank's hidden layer was overwritten by those of the heads.
  linear(rows, 4, features, room.x + features, stride, scene.heads[kBank].first_columns, scene.heads[kBank].first_bias, true, room.hidden);
  network_back(scene.heads[kBank], rows, room.x + features, stride, room.hidden, room.d_shares, room.d_hidden, 0, false, static_cast<T*>(nullptr),
               group);
}

template <class T>
__global__ void __launch_bounds__(kThreads) gradients(const Scene<T> scene, int tile, int64_t tiles_per_group, const Saved<T> s, const Gradients<T> to) {
  ANCHOR_DECODE_SHARED(T, bytes);
  const Room<T> room(scene, tile, bytes);
  T* const group = to.weights + blockIdx.x * to.n_weights;
  const int features = scene.features, stride = features + 4, offsets = scene.offsets;
  for (int64_t i = 0; i < tiles_per_group; ++i) {
    const int64_t first = (blockIdx.x * tiles_per_group + i) * tile;
    if (first >= scene.visible) break;  // the same for all threads
    const int rows = int(scene.visible - first < tile ? scene.visible - first : tile);
    load(scene, rows, [&](int r) { return scene.rows[first + r]; }, room.x);
    if (scene.bank) blend_all(scene, rows, room.x, room.hidden, room.shares, room.blended);
    gaussians_back(scene, s, first, rows, room, to.offset);
    for (const Head head : {kOpacity, kCov, kColor}) {
      for (int e = threadIdx.x; e < rows * scene.hidden; e += kThreads) {
        const int64_t m = first + e / scene.hidden, active = s.active_ends[m] - 1;
        const int j = e % scene.hidden;
        const bool any = s.active_ends[m] > (m ? s.active_ends[m - 1] : 0) && active < s.active;
        room.hidden[e] = head == kOpacity ? s.hidden_opacity[m * scene.stride + j]
                         : any            ? s.hidden_rest[(2 * active + (head == kColor)) * scene.stride + j]
                                          : T(0);
      }
      __syncthreads();
      const T* const d_out = head == kOpacity ? room.opacity : head == kCov ? room.cov : room.color;
      network_back(scene.heads[head], rows, room.blended, stride, room.hidden, d_out, room.d_hidden, features, head != kOpacity, room.d_in, group);
    }
    for (int e = threadIdx.x; e < 6 * rows; e += kThreads) {
      T sum = 0;
      for (int k = 0; k < offsets; ++k) sum += room.terms[6 * (e / 6 * offsets + k) + e % 6];
      to.log_scale[6 * scene.rows[first + e / 6] + e % 6] = sum;
    }
    if (scene.bank) {
      unblend(scene, rows, room, group, to.feature, scene.rows + first);
    } else {
      for (int e = threadIdx.x; e < rows * features; e += kThreads) to.feature[scene.rows[first + e / features] * features + e % features] = room.d_in[e];
    }
    __syncthreads();
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) add_groups(const T* __restrict__ groups, int64_t n_groups, int64_t n_weights, T* __restrict__ out) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= n_weights) return;
  T sum = 0;
  for (int64_t g = 0; g < n_groups; ++g) sum += groups[g * n_weights + i];
  out[i] = sum;
}

using Found = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

template <class T>
Found backward_as(const Arguments& a, const std::vector<at::Tensor>& values, const std::vector<at::Tensor>& saved,
                  const std::vector<at::Tensor>& grads, const at::Tensor& grad_neural) {
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  const Packed<T> packed(a, a.weights, nullptr, stream);
  const int64_t m = a.visible.size(0), n = a.weights.size(0), per_row = packed.backward_numbers();
  const int tile = tile_rows(per_row * sizeof(T));
  const int64_t tiles = (m + tile - 1) / tile, per_group = std::max<int64_t>(1, (tiles + kGroups - 1) / kGroups);
  const int64_t groups = (tiles + per_group - 1) / per_group;
  const Places places = places_of(values[4], nullptr, stream);
  at::Tensor d_offset = a.zeros(a.offset.sizes()), d_feature = a.zeros(a.feature.sizes()), d_log_scale = a.zeros(a.log_scale.sizes());
  at::Tensor sums = a.zeros({groups, n}), d_weights = a.empty({n});
  const auto at = [](const at::Tensor& tensor) { return tensor.const_data_ptr<T>(); };
  const Saved<T> s{values[4].const_data_ptr<bool>(), places.ends.const_data_ptr<int64_t>(), places.active_ends.const_data_ptr<int64_t>(),
                   values[0].size(0), saved[2].size(0), at(values[0]), at(values[1]), at(values[2]), at(values[3]), at(saved[0]), at(saved[1]),
                   at(saved[2]), at(grads[0]), at(grads[1]), at(grads[2]), at(grads[3]), at(grads[4]),
                   grad_neural.defined() ? at(grad_neural) : nullptr};
  const Gradients<T> to{d_offset.mutable_data_ptr<T>(), d_feature.mutable_data_ptr<T>(), d_log_scale.mutable_data_ptr<T>(),
                        sums.mutable_data_ptr<T>(), n};
  launch(gradients<T>, groups, kThreads, per_row * tile * sizeof(T), stream, packed.scene(), tile, per_group, s, to);
  launch(add_groups<T>, (n + kThreads - 1) / kThreads, kThreads, 0, stream, sums.const_data_ptr<T>(), groups, n, d_weights.mutable_data_ptr<T>());
  return {d_offset, d_feature, d_log_scale, d_weights};
}

Found decode_backward(const at::Tensor& position, const at::Tensor& offset, const at::Tensor& feature, const at::Tensor& log_scale,
                      const at::Tensor& visible, const at::Tensor& center, const at::Tensor& weights, int64_t hidden, int64_t distances,
                      bool bank, at::TensorList values, at::TensorList saved, at::TensorList grads, const Optional& grad_neural) {
  const Arguments given{position, offset, feature, log_scale, visible, center, weights, hidden, distances, bank};
  given.check();
  given.check_backward(values, saved, grads, grad_neural, saved_width(hidden));
  const c10::cuda::CUDAGuard guard(position.device());
  const Arguments a = given.contiguous();
  const auto dense = [](at::TensorList list) {
    std::vector<at::Tensor> tensors;
    for (const at::Tensor& tensor : list) tensors.push_back(tensor.contiguous());
    return tensors;
  };
  const at::Tensor neural = grad_neural ? grad_neural->contiguous() : at::Tensor();
  return position.scalar_type() == at::kFloat ? backward_as<float>(a, dense(values), dense(saved), dense(grads), neural)
                                              : backward_as<double>(a, dense(values), dense(saved), dense(grads), neural);
}

}  // namespace
}  // namespace anchor_decode

TORCH_LIBRARY_IMPL(anchor_decode, CUDA, m) { m.impl("decode_backward", anchor_decode::decode_backward); }
