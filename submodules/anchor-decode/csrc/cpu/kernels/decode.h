// The three passes. A task is a range of anchors, cut into tiles that go through the networks together.
//
// Forward: the first pass decodes opacities, which decide what is kept; the second decodes the rest for the anchors that
// keep a Gaussian (the active ones). Backward: the same tiles, and each group of units sums the networks' gradient for
// itself. Nothing depends on the number of threads.
#pragma once

#include "../kernels.h"
#include "multiply.h"
#include "simd.h"
#include "standard.h"

namespace anchor_decode {
inline namespace ANCHOR_DECODE_VARIANT {
namespace {

// As std::copy_n, inlined: its call of memmove takes longer than a row of a few numbers.
template <class T>
ANCHOR_DECODE_HD void copy(const T* from, int64_t count, T* to) {
  using V = Simd<T>;
  int64_t i = 0;
  for (; i + V::kLanes <= count; i += V::kLanes) V::store(to + i, V::load(from + i));
  for (; i < count; ++i) to[i] = from[i];
}

template <class T>
ANCHOR_DECODE_HD void prefetch(const T* from, int64_t count) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t i = 0; i < count + kLine - 1; i += kLine) __builtin_prefetch(from + std::min(i, count - 1));
}

// Some visible anchors, and the inputs of the networks for them.
template <class T>
class Tile {
 public:
  explicit Tile(const Scene<T>& scene)
      : scene_(scene), stride_(scene.features + 4), raw_(kTile * stride_), bank_hidden_(kTile * padded(scene.features)), shares_(kTile * kPad) {}

  int64_t count = 0;
  int64_t visible[kTile];  // index among the visible anchors
  int64_t row[kTile];      // index among all

  // The offsets of its anchors that are kept, in order; of no use before `find_kept`.
  int64_t n_kept = 0;
  struct Kept {
    int32_t anchor, offset;  // anchor: index in the tile
  };
  std::vector<Kept> kept;

  void clear() { count = 0; }

  // Rows are anywhere in memory: what will be read is asked for when the anchor is added.
  void add(int64_t index, bool with_offsets) {
    const int64_t at = scene_.rows[index];
    prefetch(scene_.feature + at * scene_.features, scene_.features);
    prefetch(scene_.position + 3 * at, 3);
    if (with_offsets) {
      prefetch(scene_.log_scale + 6 * at, 6);
      prefetch(scene_.offset + 3 * at * scene_.offsets, 3 * scene_.offsets);
    }
    visible[count] = index;
    row[count++] = at;
  }

  // A list, without branches: which offsets are kept cannot be predicted.
  void find_kept(const bool* keep) {
    kept.resize(kTile * scene_.offsets + 1);
    n_kept = 0;
    for (int64_t i = 0; i < count; ++i) {
      const bool* const of = keep + visible[i] * scene_.offsets;
      for (int64_t k = 0; k < scene_.offsets; ++k) {
        kept[n_kept] = {int32_t(i), int32_t(k)};
        n_kept += of[k];
      }
    }
  }

  // The six scales of each anchor.
  void scales_of(T* scales) const {
    for (int64_t i = 0; i < count; ++i) copy(scene_.log_scale + 6 * row[i], 6, scales + 6 * i);
    each(scales, 6 * count, [](auto x) { return exponential(x); });
  }

  // Feature, direction and distance of each anchor.
  void look_at_all() {
    for (int64_t i = 0; i < count; ++i) {
      T* const to = raw_.data() + i * stride_;
      copy(scene_.feature + row[i] * scene_.features, scene_.features, to);
      look(scene_.position + 3 * row[i], scene_.center, to + scene_.features);
    }
  }

  // The heads' inputs [count,features + 4] for a decoder: with a feature bank, the blended features.
  const T* inputs(const Decoder<T>& decoder) {
    if (!decoder.bank) return raw_.data();
    blended_.resize(kTile * stride_);
    layer(decoder.heads[kBank], raw_.data() + scene_.features, bank_hidden_.data(), padded(scene_.features));
    second(decoder.heads[kBank], bank_hidden_.data(), padded(scene_.features), shares_.data());
    for (int64_t i = 0; i < count; ++i) {
      const T* const from = raw_.data() + i * stride_;
      T *const to = blended_.data() + i * stride_, *const share = shares_.data() + i * kPad;
      softmax(share);
      for (int64_t j = 0; j < scene_.features; ++j) to[j] = blend(from, share, j, scene_.features);
      std::copy_n(from + scene_.features, 4, to + scene_.features);
    }
    return blended_.data();
  }

  // From the inputs to the hidden layer, rows of padded(hidden) that are `hidden_stride` apart.
  void layer(const Network<T>& net, const T* inputs, T* hidden, int64_t hidden_stride) const {
    const int64_t width = padded(net.hidden);
    multiply<false>(Product<T>{net.inputs, inputs, stride_, net.first, width, net.first_bias, hidden, hidden_stride}, From::kRow, count, width);
    using V = Simd<T>;
    for (int64_t i = 0; i < count; ++i) {
      for (T* at = hidden + i * hidden_stride; at < hidden + i * hidden_stride + width; at += V::kLanes) {
        const typename V::Vec h = V::load(at);
        V::store(at, h < T(0) ? typename V::Vec{} : h);  // NaN stays, as in torch
      }
    }
  }

  // From the hidden layer to the outputs [count,padded(outputs)].
  void second(const Network<T>& net, const T* hidden, int64_t hidden_stride, T* out) const {
    const int64_t width = padded(net.outputs);
    multiply<false>(Product<T>{net.hidden, hidden, hidden_stride, net.second, width, net.second_bias, out, width}, From::kRow, count, width);
  }

  int64_t stride() const { return stride_; }
  const T* raw() const { return raw_.data(); }
  const T* bank_hidden() const { return bank_hidden_.data(); }
  const T* shares() const { return shares_.data(); }

 private:
  const Scene<T>& scene_;
  const int64_t stride_;
  std::vector<T> raw_, blended_, bank_hidden_, shares_;
};

// Calls `visit(tile)` for tiles of the anchors of a unit: all of them, or those that keep a Gaussian.
template <class T, class F>
void for_tiles(const Scene<T>& scene, const bool* kept, bool active_only, int64_t unit, Tile<T>& tile, F visit) {
  const int64_t last = std::min(scene.visible, (unit + 1) * kUnit), offsets = scene.offsets;
  tile.clear();
  for (int64_t m = unit * kUnit; m < last; ++m) {
    if (active_only) {
      bool any = false;
      for (int64_t k = 0; k < offsets; ++k) any |= kept[m * offsets + k];
      if (!any) continue;
    }
    tile.add(m, active_only);
    if (tile.count == kTile) {
      visit(tile);
      tile.clear();
    }
  }
  if (tile.count) visit(tile);
}

template <class T>
void opacities(const Forward<T>& f, int64_t begin, int64_t end) {
  const Scene<T>& scene = f.scene;
  const int64_t offsets = scene.offsets, width = padded(offsets);
  Tile<T> tile(scene);
  std::vector<T> hidden(kTile * padded(f.decoders[0].heads[kOpacity].hidden)), out(kTile * width);
  for (int64_t unit = begin; unit < end; ++unit) {
    Start counts{0, 0};
    for_tiles(scene, f.kept, false, unit, tile, [&](Tile<T>& t) {
      t.look_at_all();
      for (int d = 0; d < f.n_decoders; ++d) {
        const Network<T>& net = f.decoders[d].heads[kOpacity];
        const int64_t stride = padded(net.hidden);
        T* const layer = d == 0 && f.hidden_opacity ? f.hidden_opacity + t.visible[0] * stride : hidden.data();
        t.layer(net, t.inputs(f.decoders[d]), layer, stride);
        t.second(net, layer, stride, out.data());
        each(out.data(), t.count * width, [](auto x) { return hyperbolic_tangent(x); });
        for (int64_t i = 0; i < t.count; ++i) {
          const T* const from = out.data() + i * width;
          copy(from, offsets, f.to[d].neural_opacity + t.visible[i] * offsets);
          if (d > 0) continue;
          bool* const kept = f.kept + t.visible[i] * offsets;
          int64_t n = 0;
          for (int64_t k = 0; k < offsets; ++k) n += kept[k] = from[k] > T(0);
          counts.gaussian += n;
          counts.active += n > 0;
        }
      }
    });
    f.starts[unit] = counts;
  }
}

template <class T>
class AttributePass {
 public:
  explicit AttributePass(const Forward<T>& f)
      : f_(f), scene_(f.scene), tile_(scene_), width_(padded(f.decoders[0].heads[kCov].hidden)), hidden_(2 * kTile * width_),
        cov_(kTile * padded(7 * scene_.offsets)), color_(kTile * padded(3 * scene_.offsets)), scales_(kTile * 6) {}

  void run(int64_t unit) {
    Start at = f_.starts[unit];
    for_tiles(scene_, f_.kept, true, unit, tile_, [&](Tile<T>& t) {
      t.look_at_all();
      t.find_kept(f_.kept);
      t.scales_of(scales_.data());
      for (int d = 0; d < f_.n_decoders; ++d) {
        networks(f_.decoders[d], at.active, d == 0);
        scatter(f_.to[d], at.gaussian);
      }
      place_all(at.gaussian);
      at.active += t.count;
      at.gaussian += t.n_kept;
    });
  }

 private:
  // The raw outputs of both heads, into cov_ and color_.
  void networks(const Decoder<T>& decoder, int64_t active, bool student) {
    const T* const inputs = tile_.inputs(decoder);
    T* const hidden = student && f_.hidden_rest ? f_.hidden_rest + 2 * active * width_ : hidden_.data();
    for (const Head head : {kCov, kColor}) {
      T* const rows = hidden + (head == kColor) * width_;
      tile_.layer(decoder.heads[head], inputs, rows, 2 * width_);
      tile_.second(decoder.heads[head], rows, 2 * width_, head == kCov ? cov_.data() : color_.data());
    }
  }

  // The kept offsets' outputs become attributes of Gaussians, from the Gaussian `first` on.
  void scatter(const Attributes<T>& to, int64_t first) {
    const int64_t cov_width = padded(7 * scene_.offsets), color_width = padded(3 * scene_.offsets);
    T *colors = to.colors + 3 * first, *shape = to.shape + 4 * first, *quats = to.quats + 4 * first, *scales = to.scales + 3 * first;
    for (int64_t g = 0; g < tile_.n_kept; ++g) {
      const auto [i, k] = tile_.kept[g];
      const T *cov = cov_.data() + i * cov_width + 7 * k, *color = color_.data() + i * color_width + 3 * k;
      std::memcpy(colors + 3 * g, color, 3 * sizeof(T));
      std::memcpy(shape + 4 * g, cov, 4 * sizeof(T));  // the last is replaced
      std::memcpy(quats + 4 * g, cov + 3, 4 * sizeof(T));
    }
    each(colors, 3 * tile_.n_kept, [](auto x) { return sigmoid(x); });
    each(shape, 4 * tile_.n_kept, [](auto x) { return sigmoid(x); });
    for (int64_t g = 0; g < tile_.n_kept; ++g)
      finish_shape(scales_.data() + 6 * tile_.kept[g].anchor + 3, shape + 4 * g, scales + 3 * g, quats + 4 * g);
  }

  void place_all(int64_t first) {
    const Attributes<T>& to = f_.to[0];
    for (int64_t g = 0; g < tile_.n_kept; ++g) {
      const auto [i, k] = tile_.kept[g];
      const T* const offset = scene_.offset + 3 * (tile_.row[i] * scene_.offsets + k);
      place(scene_.position + 3 * tile_.row[i], offset, scales_.data() + 6 * i, to.means + 3 * (first + g));
      to.opacities[first + g] = to.neural_opacity[tile_.visible[i] * scene_.offsets + k];
    }
  }

  const Forward<T>& f_;
  const Scene<T>& scene_;
  Tile<T> tile_;
  const int64_t width_;
  std::vector<T> hidden_, cov_, color_, scales_;
};

template <class T>
void attributes(const Forward<T>& f, int64_t begin, int64_t end) {
  AttributePass<T> pass(f);
  for (int64_t unit = begin; unit < end; ++unit) pass.run(unit);
}

template <class T>
class GradientPass {
 public:
  explicit GradientPass(const Backward<T>& b)
      : b_(b), scene_(b.scene), decoder_(*b.decoder), tile_(scene_), width_(padded(decoder_.heads[kOpacity].hidden)),
        features_(padded(scene_.features)), opacity_(kTile * padded(scene_.offsets)), cov_(kTile * padded(7 * scene_.offsets)),
        color_(kTile * padded(3 * scene_.offsets)), hidden_(2 * kTile * width_),
        d_hidden_(kTile * std::max(width_, features_)), d_inputs_(kTile * features_), d_shares_(kTile * kPad), scales_(kTile * 6) {}

  void run(int64_t group) {
    grads_ = b_.d_networks + group * kHeads;
    const int64_t units = (scene_.visible + kUnit - 1) / kUnit;
    const int64_t last = std::min(units, (group + 1) * b_.units_per_group);
    for (int64_t unit = group * b_.units_per_group; unit < last; ++unit) {
      if (b_.ascending) clear_rows(unit, units);
      // Where every neural opacity has a gradient of its own, their head runs over all anchors; else over the active
      // ones, with the other two.
      const bool apart = b_.grad.neural_opacity;
      Start at = b_.starts[unit];
      if (apart) {
        for_tiles(scene_, b_.kept, false, unit, tile_, [&](Tile<T>& t) {
          t.look_at_all();
          t.find_kept(b_.kept);
          opacity_gradients(at.gaussian);
          finish(t, tile_.inputs(decoder_), true, false, false);
          at.gaussian += t.n_kept;
        });
      }
      at = b_.starts[unit];
      for_tiles(scene_, b_.kept, true, unit, tile_, [&](Tile<T>& t) {
        t.look_at_all();
        t.find_kept(b_.kept);
        t.scales_of(scales_.data());
        if (!apart) opacity_gradients(at.gaussian);
        gaussians(at.gaussian);
        active_ = at.active;
        finish(t, tile_.inputs(decoder_), !apart, true, apart);
        at.active += t.count;
        at.gaussian += t.n_kept;
      });
    }
  }

 private:
  // The rows from the unit's first anchor to the next unit's: they are written soon, while they are in the cache.
  void clear_rows(int64_t unit, int64_t units) {
    const int64_t from = unit == 0 ? 0 : scene_.rows[unit * kUnit], to = unit + 1 == units ? b_.anchors : scene_.rows[(unit + 1) * kUnit];
    const auto clear = [&](T* rows, int64_t width) { std::fill(rows + from * width, rows + to * width, T(0)); };
    clear(b_.d_offset, 3 * scene_.offsets);
    clear(b_.d_feature, scene_.features);
    clear(b_.d_log_scale, 6);
  }

  // opacity_: gradients before the tanh, of the tile whose first Gaussian is `first`.
  void opacity_gradients(int64_t first) {
    const int64_t offsets = scene_.offsets, width = padded(offsets);
    T* const to = opacity_.data();
    std::fill_n(to, tile_.count * width, T(0));
    if (b_.grad.neural_opacity)
      for (int64_t i = 0; i < tile_.count; ++i) copy(b_.grad.neural_opacity + tile_.visible[i] * offsets, offsets, to + i * width);
    for (int64_t g = 0; g < tile_.n_kept; ++g) to[tile_.kept[g].anchor * width + tile_.kept[g].offset] += b_.grad.opacities[first + g];
    for (int64_t i = 0; i < tile_.count; ++i) {
      const T* const value = b_.value.neural_opacity + tile_.visible[i] * offsets;
      for (int64_t k = 0; k < offsets; ++k) to[i * width + k] *= T(1) - value[k] * value[k];
    }
  }

  // cov_, color_: gradients before the activations; those of offsets and scales are written.
  void gaussians(int64_t first) {
    const int64_t offsets = scene_.offsets, cov_width = padded(7 * offsets), color_width = padded(3 * offsets);
    std::fill_n(cov_.begin(), tile_.count * cov_width, T(0));
    std::fill_n(color_.begin(), tile_.count * color_width, T(0));
    int64_t n = 0;
    for (int64_t i = 0; i < tile_.count; ++i) {
      const T* const scales = scales_.data() + 6 * i;
      T d_log_scale[6] = {};
      for (; n < tile_.n_kept && tile_.kept[n].anchor == i; ++n) {
        const int64_t k = tile_.kept[n].offset, at = 3 * (tile_.row[i] * offsets + k), g = first + n;
        const Of<T> value{nullptr, b_.value.scales + 3 * g, b_.value.quats + 4 * g, b_.value.colors + 3 * g};
        const Of<T> grad{b_.grad.means + 3 * g, b_.grad.scales + 3 * g, b_.grad.quats + 4 * g, b_.grad.colors + 3 * g};
        const GaussianGrad<T> d = gaussian_vjp(scales, scene_.offset + at, b_.value.shape + 4 * g, value, grad);
        for (int j = 0; j < 6; ++j) d_log_scale[j] += d.log_scale[j];
        std::memcpy(b_.d_offset + at, d.offset, sizeof d.offset);
        std::memcpy(cov_.data() + i * cov_width + 7 * k, d.cov, sizeof d.cov);
        std::memcpy(color_.data() + i * color_width + 3 * k, d.color, sizeof d.color);
      }
      std::memcpy(b_.d_log_scale + 6 * tile_.row[i], d_log_scale, sizeof d_log_scale);
    }
  }

  // From the outputs' gradients to those of networks and features. `add`: the features have a gradient already.
  void finish(const Tile<T>& t, const T* inputs, bool opacity, bool rest, bool add) {
    bool more = false;
    if (opacity) {
      const T* hidden = b_.hidden_opacity + t.visible[0] * width_;
      if (rest) {  // the tile's rows are apart from each other
        for (int64_t i = 0; i < t.count; ++i) copy(b_.hidden_opacity + t.visible[i] * width_, width_, hidden_.data() + i * width_);
        hidden = hidden_.data();
      }
      network(kOpacity, inputs, hidden, width_, opacity_.data(), false);
      more = true;
    }
    if (rest) {
      const T* const hidden = b_.hidden_rest + 2 * active_ * width_;
      network(kCov, inputs, hidden, 2 * width_, cov_.data(), more);
      network(kColor, inputs, hidden + width_, 2 * width_, color_.data(), true);
    }
    if (decoder_.bank) unblend();
    for (int64_t i = 0; i < t.count; ++i) {
      T* const to = b_.d_feature + t.row[i] * scene_.features;
      const T* const from = d_inputs_.data() + i * features_;
      if (add) {
        for (int64_t j = 0; j < scene_.features; ++j) to[j] += from[j];
      } else {
        copy(from, scene_.features, to);
      }
    }
  }

  // Adds to the gradient of a network and, unless it is the bank's, to d_inputs_; `add`: else d_inputs_ is replaced.
  void network(Head head, const T* inputs, const T* hidden, int64_t hidden_stride, const T* d_out, bool add) {
    const Network<T>& net = decoder_.heads[head];
    const NetworkGrad<T>& to = grads_[head];
    const int64_t count = tile_.count, width = padded(net.hidden), out_width = padded(net.outputs);
    T* const d_hidden = d_hidden_.data();
    multiply<false>(Product<T>{net.outputs, d_out, out_width, net.second_rows, width, nullptr, d_hidden, width}, From::kZero, count, width);
    using V = Simd<T>;
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t j = 0; j < width; j += V::kLanes) {
        T* const at = d_hidden + i * width + j;
        V::store(at, V::load(hidden + i * hidden_stride + j) <= T(0) ? typename V::Vec{} : V::load(at));
      }
    }
    multiply<true>(Product<T>{count, d_out, out_width, hidden, hidden_stride, nullptr, to.second_rows, width}, From::kResult, net.outputs, width);
    add_rows(d_out, out_width, count, out_width, to.second_bias);
    multiply<true>(Product<T>{count, inputs, tile_.stride(), d_hidden, width, nullptr, to.first, width}, From::kResult, net.inputs, width);
    add_rows(d_hidden, width, count, width, to.first_bias);
    if (head == kBank) return;
    multiply<false>(Product<T>{net.hidden, d_hidden, width, net.first_rows, features_, nullptr, d_inputs_.data(), features_},
                    add ? From::kResult : From::kZero, count, features_);
  }

  // d_inputs_ becomes the gradient of the features as they were before the bank blended them.
  void unblend() {
    const int64_t features = scene_.features;
    std::vector<T> own(features);
    std::fill_n(d_shares_.begin(), tile_.count * kPad, T(0));
    for (int64_t i = 0; i < tile_.count; ++i) {
      const T *const feature = tile_.raw() + i * tile_.stride(), *const share = tile_.shares() + i * kPad;
      T *const d = d_inputs_.data() + i * features_, *const d_share = d_shares_.data() + i * kPad;
      std::fill(own.begin(), own.end(), T(0));
      for (int64_t j = 0; j < features; ++j) {
        const Strides from = strides_of(j, features);
        own[from.coarse] += share[0] * d[j];
        own[from.middle] += share[1] * d[j];
        own[j] += share[2] * d[j];
        d_share[0] += feature[from.coarse] * d[j];
        d_share[1] += feature[from.middle] * d[j];
        d_share[2] += feature[j] * d[j];
      }
      softmax_vjp(share, d_share);
      std::copy(own.begin(), own.end(), d);
    }
    network(kBank, tile_.raw() + features, tile_.bank_hidden(), features_, d_shares_.data(), false);
  }

  const Backward<T>& b_;
  const Scene<T>& scene_;
  const Decoder<T>& decoder_;
  const NetworkGrad<T>* grads_ = nullptr;
  Tile<T> tile_;
  const int64_t width_, features_;
  int64_t active_ = 0;
  std::vector<T> opacity_, cov_, color_, hidden_, d_hidden_, d_inputs_, d_shares_, scales_;
};

template <class T>
void gradients(const Backward<T>& b, int64_t begin, int64_t end) {
  GradientPass<T> pass(b);
  for (int64_t group = begin; group < end; ++group) pass.run(group);
}

}  // namespace
}  // namespace ANCHOR_DECODE_VARIANT

extern const Kernels ANCHOR_DECODE_TABLE;
constexpr Kernels ANCHOR_DECODE_TABLE{opacities<float>, opacities<double>, attributes<float>,
                                      attributes<double>, gradients<float>, gradients<double>};

}  // namespace anchor_decode
