// CPU driver: packs the weights, shares units of anchors among the threads, adds what the groups found.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <algorithm>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "../arguments.h"
#include "../common/decode.h"
#include "choose.h"
#include "kernels.h"

namespace anchor_decode {
namespace {

#if defined(CPU_KERNELS_BY_CPU)
constexpr const Kernels* kTables[] = {&kernels_v4, &kernels_v3};
#else
constexpr const Kernels* kTables[] = {&kernels_plain};
#endif

size_t chosen() {
  static const size_t variant = cpu_variants::choose("anchor_decode", cpu_variants::features(), cpu_variants::wanted());
  return variant;
}

std::string choice(const std::string& features, const std::string& wanted) {
  return cpu_variants::variants()[cpu_variants::choose("anchor_decode", features, wanted)].name;
}

// Groups whose gradients are summed apart: as many threads as can share the backward pass. With more of them their sum
// would take longer than it saves.
constexpr int64_t kGroups = 32;

// to[r][c] = from[c][r], where `from` has `columns` rows of `rows` numbers; the rest of the padded row stays zero.
template <class T>
void transpose(const T* from, int64_t rows, int64_t columns, T* to) {
  const int64_t width = padded(columns);
  for (int64_t c = 0; c < columns; ++c)
    for (int64_t r = 0; r < rows; ++r) to[r * width + c] = from[c * rows + r];
}

// The first `columns` of rows of `stride` numbers, padded.
template <class T>
void copy_rows(const T* from, int64_t rows, int64_t stride, int64_t columns, T* to) {
  for (int64_t r = 0; r < rows; ++r) std::copy_n(from + r * stride, columns, to + r * padded(columns));
}

template <class T>
class Packed {
 public:
  Packed(const Layout& layout, bool bank, int64_t features, const T* weights) {
    int64_t size = 0;
    for (const Part& p : layout.parts) size += needs(p, features);
    buffer_.assign(size, T(0));
    T* next = buffer_.data();
    decoder_.bank = bank;
    for (int h = 0; h < (bank ? 4 : 3); ++h) {
      const Part& p = layout.parts[h];
      const int64_t width = padded(p.hidden), out = padded(p.outputs), in = padded(features);
      const auto take = [&next](int64_t count) { return std::exchange(next, next + count); };
      T *first = take(p.inputs * width), *first_bias = take(width), *second = take(p.hidden * out), *second_bias = take(out);
      T *first_rows = take(p.hidden * in), *second_rows = take(p.outputs * width);
      transpose(weights + p.first, p.inputs, p.hidden, first);
      std::copy_n(weights + p.first_bias, p.hidden, first_bias);
      transpose(weights + p.second, p.hidden, p.outputs, second);
      std::copy_n(weights + p.second_bias, p.outputs, second_bias);
      if (h < 3) copy_rows(weights + p.first, p.hidden, p.inputs, features, first_rows);
      copy_rows(weights + p.second, p.outputs, p.hidden, p.hidden, second_rows);
      decoder_.heads[h] = {p.inputs, p.hidden, p.outputs, first, first_bias, second, second_bias, first_rows, second_rows};
    }
  }

  const Decoder<T>& decoder() const { return decoder_; }

 private:
  static int64_t needs(const Part& p, int64_t features) {
    const int64_t width = padded(p.hidden), out = padded(p.outputs);
    return (p.inputs + 1 + p.outputs) * width + (p.hidden + 1) * out + p.hidden * padded(features);
  }

  std::vector<T> buffer_;
  Decoder<T> decoder_{};
};

// The gradients of one group's networks, and how they go back into one row.
template <class T>
class Sums {
 public:
  Sums(const Layout& layout, bool bank, int64_t groups) : layout_(layout), heads_(bank ? 4 : 3) {
    for (int h = 0; h < heads_; ++h) size_ += (layout.parts[h].inputs + 1 + layout.parts[h].outputs) * padded(layout.parts[h].hidden) + padded(layout.parts[h].outputs);
    buffer_.assign(size_ * groups, T(0));
    grads_.resize(groups * kHeads);
    for (int64_t g = 0; g < groups; ++g) set(buffer_.data() + g * size_, &grads_[g * kHeads]);
  }

  const NetworkGrad<T>* grads() const { return grads_.data(); }

  // In the order of the groups.
  void write(T* row) {
    const int64_t groups = int64_t(grads_.size()) / kHeads;
    for (int64_t g = 1; g < groups; ++g)
      for (int64_t i = 0; i < size_; ++i) buffer_[i] += buffer_[g * size_ + i];
    for (int h = 0; h < heads_ && groups > 0; ++h) {
      const Part& p = layout_.parts[h];
      const int64_t width = padded(p.hidden);
      const NetworkGrad<T>& from = grads_[h];
      for (int64_t j = 0; j < p.hidden; ++j)
        for (int64_t i = 0; i < p.inputs; ++i) row[p.first + j * p.inputs + i] = from.first[i * width + j];
      std::copy_n(from.first_bias, p.hidden, row + p.first_bias);
      for (int64_t o = 0; o < p.outputs; ++o) std::copy_n(from.second_rows + o * width, p.hidden, row + p.second + o * p.hidden);
      std::copy_n(from.second_bias, p.outputs, row + p.second_bias);
    }
  }

 private:
  void set(T* next, NetworkGrad<T>* to) {
    for (int h = 0; h < heads_; ++h) {
      const Part& p = layout_.parts[h];
      const int64_t width = padded(p.hidden);
      const auto take = [&next](int64_t count) { return std::exchange(next, next + count); };
      to[h] = {take(p.inputs * width), take(width), take(p.outputs * width), take(padded(p.outputs))};
    }
  }

  const Layout& layout_;
  const int heads_;
  int64_t size_ = 0;
  std::vector<T> buffer_;
  std::vector<NetworkGrad<T>> grads_;
};

int64_t units_of(int64_t visible) { return (visible + kUnit - 1) / kUnit; }

// Rows are written by different threads and never added: each may occur once. Whether they ascend.
bool check_rows(const at::Tensor& visible, int64_t anchors) {
  const int64_t* const rows = visible.const_data_ptr<int64_t>();
  bool ascending = true;
  for (int64_t m = 0; m < visible.size(0); ++m) {
    TORCH_CHECK(rows[m] >= 0 && rows[m] < anchors, "anchor_decode: visible holds ", rows[m], ", expected rows of ", anchors, " anchors");
    ascending &= m == 0 || rows[m - 1] < rows[m];
  }
  if (ascending) return true;
  std::vector<bool> seen(anchors);
  for (int64_t m = 0; m < visible.size(0); ++m) {
    TORCH_CHECK(!seen[rows[m]], "anchor_decode: visible holds ", rows[m], " twice, expected each row once");
    seen[rows[m]] = true;
  }
  return false;
}

// Where it is true. Without branches, of which one in a few would be mispredicted.
at::Tensor rows_where(const at::Tensor& mask) {
  const int64_t n = mask.size(0);
  const bool* const set = mask.const_data_ptr<bool>();
  int64_t count = 0, next = 0;
  for (int64_t i = 0; i < n; ++i) count += set[i];
  const at::Tensor rows = at::empty({count + 1}, mask.options().dtype(at::kLong));  // one more is written, and not kept
  int64_t* const to = rows.mutable_data_ptr<int64_t>();
  for (int64_t i = 0; i < n; ++i) {
    to[next] = i;
    next += set[i];
  }
  return rows.narrow(0, 0, count);
}

template <class T>
Scene<T> scene_of(const Arguments& a) {
  return {a.visible.size(0), a.feature.size(1), a.offset.size(1), a.position.const_data_ptr<T>(), a.offset.const_data_ptr<T>(),
          a.feature.const_data_ptr<T>(), a.log_scale.const_data_ptr<T>(), a.center.const_data_ptr<T>(), a.visible.const_data_ptr<int64_t>()};
}

using Outputs = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor,
                           at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

// Counts of each unit become what comes before it; the last entry is the sum.
void sum_up(std::vector<Start>& starts) {
  Start sum{0, 0};
  for (Start& start : starts) {
    const Start counts = start;
    start = sum;
    sum.active += counts.active;
    sum.gaussian += counts.gaussian;
  }
}

// From what was kept, as the forward pass counted it.
std::vector<Start> starts_of(const at::Tensor& kept) {
  const int64_t m = kept.size(0), offsets = kept.size(1);
  const bool* const keep = kept.const_data_ptr<bool>();
  std::vector<Start> starts(units_of(m) + 1);
  for (int64_t i = 0; i < m; ++i) {
    int64_t n = 0;
    for (int64_t k = 0; k < offsets; ++k) n += keep[i * offsets + k];
    starts[i / kUnit].gaussian += n;
    starts[i / kUnit].active += n > 0;
  }
  sum_up(starts);
  return starts;
}

template <class T>
Outputs decode_as(const Arguments& a, const Optional& teacher, bool train, const at::Tensor& listed) {
  const Layout layout = a.layout();
  const int64_t features = a.feature.size(1), offsets = a.offset.size(1), m = a.visible.size(0), units = units_of(m), width = padded(a.hidden);
  std::vector<Packed<T>> packed;
  packed.emplace_back(layout, a.bank, features, a.weights.const_data_ptr<T>());
  if (teacher) packed.emplace_back(layout, a.bank, features, teacher->contiguous().const_data_ptr<T>());
  std::vector<Decoder<T>> decoders;
  for (const Packed<T>& p : packed) decoders.push_back(p.decoder());

  at::Tensor neural = a.empty({m, offsets}), kept = at::empty({m, offsets}, a.position.options().dtype(at::kBool));
  at::Tensor teacher_neural = a.empty({teacher ? m : 0, offsets}), hidden_opacity = a.empty({train ? m : 0, width});
  std::vector<Start> starts(units + 1);
  Forward<T> f{};
  f.scene = scene_of<T>(a);
  f.decoders = decoders.data();
  f.n_decoders = int(decoders.size());
  f.kept = kept.mutable_data_ptr<bool>();
  f.starts = starts.data();
  f.to[0].neural_opacity = neural.mutable_data_ptr<T>();
  f.to[1].neural_opacity = teacher_neural.mutable_data_ptr<T>();
  f.hidden_opacity = train ? hidden_opacity.mutable_data_ptr<T>() : nullptr;
  const Kernels& kernels = *kTables[chosen()];
  const auto opacities = kernels.opacities(T{});
  at::parallel_for(0, units, 1, [&](int64_t begin, int64_t end) { opacities(f, begin, end); });

  sum_up(starts);
  const Start sum = starts.back();
  const int64_t g = sum.gaussian, h = teacher ? g : 0;
  at::Tensor means = a.empty({g, 3}), opacity = a.empty({g, 1}), hidden_rest = a.empty({train ? sum.active : 0, 2, width});
  at::Tensor scales[2] = {a.empty({g, 3}), a.empty({h, 3})}, quats[2] = {a.empty({g, 4}), a.empty({h, 4})};
  at::Tensor colors[2] = {a.empty({g, 3}), a.empty({h, 3})}, shape[2] = {a.empty({g, kShape}), a.empty({h, kShape})};
  for (int d = 0; d < f.n_decoders; ++d) {
    f.to[d].scales = scales[d].mutable_data_ptr<T>();
    f.to[d].quats = quats[d].mutable_data_ptr<T>();
    f.to[d].colors = colors[d].mutable_data_ptr<T>();
    f.to[d].shape = shape[d].mutable_data_ptr<T>();
  }
  f.to[0].means = means.mutable_data_ptr<T>();
  f.to[0].opacities = opacity.mutable_data_ptr<T>();
  f.hidden_rest = train ? hidden_rest.mutable_data_ptr<T>() : nullptr;
  const auto attributes = kernels.attributes(T{});
  at::parallel_for(0, units, 1, [&](int64_t begin, int64_t end) { attributes(f, begin, end); });
  if (!train) shape[0] = a.empty({0, kShape});
  return {means, scales[0], quats[0], opacity, colors[0], neural, kept, scales[1], quats[1], colors[1], teacher_neural, shape[0], hidden_opacity,
          hidden_rest, listed};
}

Outputs decode(const at::Tensor& position, const at::Tensor& offset, const at::Tensor& feature, const at::Tensor& log_scale,
               const at::Tensor& visible, const at::Tensor& center, const at::Tensor& weights, const Optional& teacher, int64_t hidden,
               int64_t distances, bool bank, bool train, at::IntArrayRef capacity) {
  const Arguments given{position, offset, feature, log_scale, visible, center, weights, hidden, distances, bank};
  given.check();
  given.check_capacity(capacity);  // all is counted before it is written
  if (teacher) given.check_weights("teacher", *teacher);
  Arguments a = given.contiguous();
  at::Tensor listed = at::empty({0}, visible.options().dtype(at::kLong));
  if (a.masked()) a.visible = listed = rows_where(a.visible);
  else check_rows(a.visible, position.size(0));
  return position.scalar_type() == at::kFloat ? decode_as<float>(a, teacher, train, listed) : decode_as<double>(a, teacher, train, listed);
}

using Gradients = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

template <class T>
Gradients backward_as(const Arguments& a, const std::vector<at::Tensor>& values, const std::vector<at::Tensor>& saved,
                      const std::vector<at::Tensor>& grads, const at::Tensor& grad_neural, bool ascending) {
  const Layout layout = a.layout();
  const int64_t m = a.visible.size(0), units = units_of(m), per_group = std::max<int64_t>(1, (units + kGroups - 1) / kGroups);
  const int64_t groups = (units + per_group - 1) / per_group;
  const Packed<T> packed(layout, a.bank, a.feature.size(1), a.weights.const_data_ptr<T>());
  Sums<T> sums(layout, a.bank, groups);
  ascending &= m > 0;  // else no task clears any row
  const auto like = [&](const at::Tensor& tensor) { return ascending ? a.empty(tensor.sizes()) : a.zeros(tensor.sizes()); };
  at::Tensor d_offset = like(a.offset), d_feature = like(a.feature), d_log_scale = like(a.log_scale);
  at::Tensor d_weights = a.zeros(a.weights.sizes());
  const auto at = [](const at::Tensor& tensor) { return tensor.defined() ? tensor.const_data_ptr<T>() : nullptr; };
  Backward<T> b{};
  b.scene = scene_of<T>(a);
  b.decoder = &packed.decoder();
  b.kept = values[4].const_data_ptr<bool>();
  const std::vector<Start> starts = starts_of(values[4]);
  TORCH_CHECK(starts.back().gaussian == values[0].size(0) && starts.back().active == saved[2].size(0), "anchor_decode: kept has ",
              starts.back().gaussian, " Gaussians of ", starts.back().active, " anchors, scales ", values[0].size(0), " and hidden_rest ",
              saved[2].size(0));
  b.starts = starts.data();
  b.hidden_opacity = at(saved[1]);
  b.hidden_rest = at(saved[2]);
  b.value = {nullptr, at(values[0]), at(values[1]), nullptr, at(values[2]), at(saved[0]), at(values[3])};
  b.grad = {at(grads[0]), at(grads[1]), at(grads[2]), at(grads[3]), at(grads[4]), nullptr, at(grad_neural)};
  b.d_offset = d_offset.mutable_data_ptr<T>();
  b.d_feature = d_feature.mutable_data_ptr<T>();
  b.d_log_scale = d_log_scale.mutable_data_ptr<T>();
  b.anchors = a.position.size(0);
  b.ascending = ascending;
  b.d_networks = sums.grads();
  b.units_per_group = per_group;
  const auto gradients = kTables[chosen()]->gradients(T{});
  at::parallel_for(0, groups, 1, [&](int64_t begin, int64_t end) { gradients(b, begin, end); });
  sums.write(d_weights.mutable_data_ptr<T>());
  return {d_offset, d_feature, d_log_scale, d_weights};
}

Gradients decode_backward(const at::Tensor& position, const at::Tensor& offset, const at::Tensor& feature, const at::Tensor& log_scale,
                          const at::Tensor& visible, const at::Tensor& center, const at::Tensor& weights, int64_t hidden,
                          int64_t distances, bool bank, at::TensorList values, at::TensorList saved, at::TensorList grads,
                          const Optional& grad_neural) {
  const Arguments given{position, offset, feature, log_scale, visible, center, weights, hidden, distances, bank};
  given.check();
  given.check_backward(values, saved, grads, grad_neural, padded(hidden));
  const Arguments a = given.contiguous();
  const bool ascending = check_rows(a.visible, position.size(0));
  const auto dense = [](at::TensorList list) {
    std::vector<at::Tensor> tensors;
    for (const at::Tensor& tensor : list) tensors.push_back(tensor.contiguous());
    return tensors;
  };
  const at::Tensor neural = grad_neural ? grad_neural->contiguous() : at::Tensor();
  return position.scalar_type() == at::kFloat ? backward_as<float>(a, dense(values), dense(saved), dense(grads), neural, ascending)
                                              : backward_as<double>(a, dense(values), dense(saved), dense(grads), neural, ascending);
}

}  // namespace
}  // namespace anchor_decode

// Here and not in binding.cpp, since they belong to the CPU build alone.
TORCH_LIBRARY_FRAGMENT(anchor_decode, m) {
  // Which variant runs here, and which would on a CPU with these features (separated by spaces).
  m.def("cpu_kernels() -> str", [] { return cpu_variants::variants()[anchor_decode::chosen()].name; });
  m.def("cpu_kernels_for(str features, str wanted) -> str", &anchor_decode::choice);
}

TORCH_LIBRARY_IMPL(anchor_decode, CPU, m) {
  m.impl("decode", anchor_decode::decode);
  m.impl("decode_backward", anchor_decode::decode_backward);
}
