// CUDA driver, forward: blocks of threads take tiles of anchors through the networks in shared memory. The first kernel
// decodes opacities; sums over anchors say where each anchor's Gaussians go; the second decodes the rest for the anchors
// that keep one.
//
// With `capacity`, both are launched in the memory that is expected to suffice before the host knows how many anchors are
// visible and what they keep: it reads the numbers late (late.cuh). What did not fit is decoded again; else the results are
// cut to what was counted. They have the same bits for every `capacity`.
#include <ATen/ops/cat.h>
#include <ATen/ops/cumsum.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "driver.cuh"
#include "late.cuh"

namespace anchor_decode {
namespace {

template <class T>
__global__ void __launch_bounds__(kThreads)
    opacities(const Scene<T> scene, int tile, T* __restrict__ saved, T* __restrict__ neural, bool* __restrict__ kept) {
  ANCHOR_DECODE_SHARED(T, room);
  const int features = scene.features, stride = features + 4, offsets = scene.offsets;
  const int64_t first = int64_t(blockIdx.x) * tile, anchors = scene.anchors();
  if (first >= anchors) return;  // all threads
  const int rows = int(anchors - first < tile ? anchors - first : tile);
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

// The number of Gaussians of each anchor, and whether it has any. None where there is no anchor.
__global__ void __launch_bounds__(kThreads)
    count_kept(const bool* kept, const int64_t* count, int64_t visible, int offsets, int64_t* gaussians, int64_t* active) {
  const int64_t m = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (m >= visible) return;
  int64_t n = 0;
  for (int k = 0; k < offsets && (!count || m < *count); ++k) n += kept[m * offsets + k];
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
    attributes(const Scene<T> scene, int tile, const int64_t* __restrict__ totals, int64_t gaussians, const int64_t* __restrict__ list,
               const int64_t* __restrict__ ends, const bool* __restrict__ kept, T* __restrict__ saved, const Attributes<T> to) {
  ANCHOR_DECODE_SHARED(T, room);
  const int features = scene.features, stride = features + 4, offsets = scene.offsets;
  const int64_t first = int64_t(blockIdx.x) * tile, n_active = totals[1];
  if (first >= n_active) return;  // all threads
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
    if (g >= gaussians) continue;  // it does not fit
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

// list: the anchors that are visible, as far as there is capacity. until[i]: how many there are up to and with i.
__global__ void __launch_bounds__(kThreads)
    list_visible(const bool* visible, const int64_t* until, int64_t anchors, int64_t capacity, int64_t* list) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i < anchors && visible[i] && until[i] <= capacity) list[until[i] - 1] = i;
}

using Outputs = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor,
                           at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

// The two kernels, and what they write, for M anchors at most.
template <class T>
class Decoding {
 public:
  // `count`: int64 [1], how many anchors there are, if only the device knows it; or undefined: all of `a.visible`.
  Decoding(const Arguments& a, const Optional& teacher, bool train, const at::Tensor& count)
      : a_(a), teacher_(teacher ? teacher->contiguous() : a.weights), taught_(teacher.has_value()), train_(train),
        count_(count.defined() ? count.const_data_ptr<int64_t>() : nullptr), student_(a_, a_.weights, count_, stream_),
        other_(a_, teacher_, count_, stream_), per_row_(student_.forward_numbers()), tile_(tile_rows(per_row_ * sizeof(T))) {
    const int64_t m = a.visible.size(0), offsets = a.offset.size(1);
    neural_ = a.empty({m, offsets});
    kept_ = at::empty({m, offsets}, a.position.options().dtype(at::kBool));
    teacher_neural_ = a.empty({taught_ ? m : 0, offsets});
    hidden_opacity_ = a.zeros({train ? m : 0, saved_width(a.hidden)});
    launch(opacities<T>, tiles(), kThreads, shared(), stream_, student_.scene(), tile_, in(hidden_opacity_, train), in(neural_, true),
           kept_.mutable_data_ptr<bool>());
    bool* const decided = nullptr;
    if (taught_)
      launch(opacities<T>, tiles(), kThreads, shared(), stream_, other_.scene(), tile_, in(neural_, false), in(teacher_neural_, true), decided);
    places_ = places_of(kept_, count_, stream_);
  }

  // int64 [2] on the device: Gaussians, active anchors.
  const at::Tensor& totals() const { return places_.totals; }

  // At most; with gradients, hidden layers of so many active anchors are kept.
  void attributes_of(int64_t gaussians, int64_t active) {
    const int64_t g = gaussians, h = taught_ ? g : 0;
    means_ = a_.empty({g, 3});
    opacity_ = a_.empty({g, 1});
    hidden_rest_ = a_.zeros({train_ ? active : 0, 2, saved_width(a_.hidden)});
    for (int d = 0; d < 2; ++d) {
      const int64_t n = d ? h : g;
      scales_[d] = a_.empty({n, 3}), quats_[d] = a_.empty({n, 4}), colors_[d] = a_.empty({n, 3}), shape_[d] = a_.empty({n, kShape});
      if (n == 0) continue;
      const Attributes<T> to{in(means_, d == 0), in(scales_[d], true), in(quats_[d], true), in(opacity_, d == 0), in(colors_[d], true),
                             in(shape_[d], true), neural_.const_data_ptr<T>()};
      launch(attributes<T>, tiles(), kThreads, shared(), stream_, (d ? other_ : student_).scene(), tile_,
             places_.totals.const_data_ptr<int64_t>(), g, places_.list.const_data_ptr<int64_t>(), places_.ends.const_data_ptr<int64_t>(),
             kept_.const_data_ptr<bool>(), in(hidden_rest_, train_ && d == 0), to);
    }
  }

  // What there is of everything.
  Outputs cut(int64_t anchors, int64_t gaussians, int64_t active, const at::Tensor& listed) {
    const auto first = [](const at::Tensor& tensor, int64_t rows) {
      std::vector<int64_t> sizes = tensor.sizes().vec();
      sizes[0] = std::min(sizes[0], rows);
      return tensor.resize_(sizes);
    };
    for (at::Tensor* tensor : {&neural_, &kept_, &teacher_neural_, &hidden_opacity_}) first(*tensor, anchors);
    for (at::Tensor* tensor : {&means_, &opacity_}) first(*tensor, gaussians);
    for (auto* pair : {&scales_, &quats_, &colors_, &shape_})
      for (at::Tensor& tensor : *pair) first(tensor, gaussians);
    first(hidden_rest_, active);
    if (!train_) shape_[0] = a_.empty({0, kShape});
    return {means_, scales_[0], quats_[0], opacity_, colors_[0], neural_, kept_, scales_[1], quats_[1], colors_[1], teacher_neural_, shape_[0],
            hidden_opacity_, hidden_rest_, listed};
  }

 private:
  static T* in(const at::Tensor& tensor, bool wanted) { return wanted ? tensor.mutable_data_ptr<T>() : nullptr; }
  int64_t tiles() const { return (kept_.size(0) + tile_ - 1) / tile_; }
  int64_t shared() const { return per_row_ * tile_ * sizeof(T); }

  const Arguments a_;
  const at::Tensor teacher_;
  const bool taught_, train_;
  const int64_t* const count_;
  const cudaStream_t stream_ = c10::cuda::getCurrentCUDAStream();
  const Packed<T> student_, other_;
  const int64_t per_row_;
  const int tile_;
  at::Tensor neural_, kept_, teacher_neural_, hidden_opacity_, means_, opacity_, hidden_rest_, scales_[2], quats_[2], colors_[2], shape_[2];
  Places places_;
};

// The host waits until the device has nothing left to do, once for a list of anchors and twice for a mask.
template <class T>
Outputs decode_counted(Arguments a, const Optional& teacher, bool train) {
  at::Tensor listed = at::empty({0}, a.visible.options().dtype(at::kLong));
  if (a.masked()) a.visible = listed = a.visible.nonzero().squeeze(1).contiguous();
  Decoding<T> decoding(a, teacher, train, {});
  const at::Tensor totals = decoding.totals().cpu();
  const int64_t* const found = totals.const_data_ptr<int64_t>();
  decoding.attributes_of(found[0], found[1]);
  return decoding.cut(a.visible.size(0), found[0], found[1], listed);
}

template <class T>
Outputs decode_as(const Arguments& given, const Optional& teacher, bool train, at::IntArrayRef capacity) {
  const int64_t n = given.position.size(0), listed = given.visible.size(0);
  const int64_t anchors = capacity.empty() ? 0 : given.masked() ? std::min(capacity[0], n) : listed;
  if (anchors == 0 || capacity[1] == 0) return decode_counted<T>(given, teacher, train);
  const int64_t gaussians = std::min(capacity[1], anchors * given.offset.size(1));
  Arguments a = given;
  at::Tensor until, count;
  const auto list = [&](int64_t size) {
    a.visible = at::empty({size}, a.position.options().dtype(at::kLong));
    launch(list_visible, (n + kThreads - 1) / kThreads, kThreads, 0, c10::cuda::getCurrentCUDAStream(), given.visible.const_data_ptr<bool>(),
           until.const_data_ptr<int64_t>(), n, size, a.visible.mutable_data_ptr<int64_t>());
  };
  if (given.masked()) {
    until = at::cumsum(given.visible, 0);
    count = until.narrow(0, n - 1, 1);
    list(anchors);
  }
  Decoding<T> decoding(a, teacher, train, count);
  const Late late(count.defined() ? at::cat({decoding.totals(), count}) : decoding.totals());
  decoding.attributes_of(gaussians, anchors);
  const int64_t* const found = late.wait().template const_data_ptr<int64_t>();
  const int64_t visible = count.defined() ? found[2] : listed;
  const bool fits = visible <= anchors && found[0] <= gaussians;
  if (fits && count.defined()) a.visible.resize_({visible});
  else if (count.defined()) list(visible);
  const at::Tensor rows = count.defined() ? a.visible : at::empty({0}, given.visible.options());
  if (fits) return decoding.cut(visible, found[0], found[1], rows);
  Outputs again = decode_counted<T>(a, teacher, train);
  std::get<14>(again) = rows;
  return again;
}

Outputs decode(const at::Tensor& position, const at::Tensor& offset, const at::Tensor& feature, const at::Tensor& log_scale,
               const at::Tensor& visible, const at::Tensor& center, const at::Tensor& weights, const Optional& teacher, int64_t hidden,
               int64_t distances, bool bank, bool train, at::IntArrayRef capacity) {
  const Arguments given{position, offset, feature, log_scale, visible, center, weights, hidden, distances, bank};
  given.check();
  given.check_capacity(capacity);
  if (teacher) given.check_weights("teacher", *teacher);
  const c10::cuda::CUDAGuard guard(position.device());
  const Arguments a = given.contiguous();
  return position.scalar_type() == at::kFloat ? decode_as<float>(a, teacher, train, capacity) : decode_as<double>(a, teacher, train, capacity);
}

}  // namespace

// until[m]: the number of active anchors up to and with m. list: those anchors.
__global__ void __launch_bounds__(kThreads) list_active(const int64_t* counts, const int64_t* until, int64_t visible, int64_t* list) {
  const int64_t m = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (m < visible && counts[m]) list[until[m] - 1] = m;
}

Places places_of(const at::Tensor& kept, const int64_t* count, cudaStream_t stream) {
  const int64_t m = kept.size(0), blocks = (m + kThreads - 1) / kThreads;
  const auto options = kept.options().dtype(at::kLong);
  at::Tensor counts = at::empty({2, m}, options), list = at::empty({m}, options);
  int64_t* const of = counts.mutable_data_ptr<int64_t>();
  launch(count_kept, blocks, kThreads, 0, stream, kept.const_data_ptr<bool>(), count, m, int(kept.size(1)), of, of + m);
  const at::Tensor sums = at::cumsum(counts, 1);
  const int64_t* const until = sums.const_data_ptr<int64_t>();
  launch(list_active, blocks, kThreads, 0, stream, of + m, until + m, m, list.mutable_data_ptr<int64_t>());
  const at::Tensor totals = m ? sums.select(1, m - 1).contiguous() : at::zeros({2}, options);
  return {list, sums.select(0, 0), sums.select(0, 1), totals};
}

}  // namespace anchor_decode

TORCH_LIBRARY_IMPL(anchor_decode, CUDA, m) { m.impl("decode", anchor_decode::decode); }
