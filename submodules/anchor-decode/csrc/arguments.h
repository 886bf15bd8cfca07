// Checks of the arguments, and where a decoder's weights are in its one row, for every driver.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <array>
#include <optional>

#include "common/count.h"

namespace anchor_decode {

using Optional = std::optional<at::Tensor>;

// A network's part of the row of weights: [hidden,inputs], [hidden], [outputs,hidden], [outputs], as torch keeps them.
struct Part {
  int64_t inputs, hidden, outputs, first, first_bias, second, second_bias, end;
};

// The networks follow one another: opacity, cov, color and, with a feature bank, its own.
struct Layout {
  std::array<Part, 4> parts;
  int64_t size;

  Layout(int64_t features, int64_t offsets, int64_t hidden, int64_t distances, bool bank) {
    const int64_t inputs[4] = {features + 3 + (distances & 1), features + 3 + (distances >> 1 & 1), features + 3 + (distances >> 2 & 1), 4};
    const int64_t outputs[4] = {offsets, 7 * offsets, 3 * offsets, 3};
    size = 0;
    for (int i = 0; i < 4; ++i) {
      Part& p = parts[i];
      p.inputs = inputs[i];
      p.hidden = i == 3 ? features : hidden;
      p.outputs = outputs[i];
      p.first = size;
      p.first_bias = p.first + p.hidden * p.inputs;
      p.second = p.first_bias + p.hidden;
      p.second_bias = p.second + p.outputs * p.hidden;
      p.end = p.second_bias + p.outputs;
      if (i < 3 || bank) size = p.end;
    }
  }
};

// What both operators are given.
struct Arguments {
  at::Tensor position, offset, feature, log_scale, visible, center, weights;
  int64_t hidden, distances;
  bool bank;

  // Whether `visible` says of every anchor whether it is; else it lists those that are.
  bool masked() const { return visible.scalar_type() == at::kBool; }

  Layout layout() const { return Layout(feature.size(1), offset.size(1), hidden, distances, bank); }

  void check() const {
    TORCH_CHECK(position.scalar_type() == at::kFloat || position.scalar_type() == at::kDouble, "anchor_decode: position is ",
                position.scalar_type(), ", expected float32 or float64");
    TORCH_CHECK(position.dim() == 2 && position.size(1) == 3, "anchor_decode: position has shape ", position.sizes(), ", expected [N, 3]");
    const int64_t n = position.size(0);
    TORCH_CHECK(offset.dim() == 3 && offset.size(0) == n && offset.size(1) > 0 && offset.size(2) == 3, "anchor_decode: offset has shape ",
                offset.sizes(), ", expected [", n, ", K, 3] with K > 0");
    TORCH_CHECK(feature.dim() == 2 && feature.size(0) == n && feature.size(1) > 0, "anchor_decode: feature has shape ", feature.sizes(),
                ", expected [", n, ", F] with F > 0");
    TORCH_CHECK(log_scale.dim() == 2 && log_scale.size(0) == n && log_scale.size(1) == 6, "anchor_decode: log_scale has shape ",
                log_scale.sizes(), ", expected [", n, ", 6]");
    TORCH_CHECK(visible.dim() == 1 && (visible.scalar_type() == at::kLong || (masked() && visible.size(0) == n)), "anchor_decode: visible is ",
                visible.scalar_type(), " of shape ", visible.sizes(), ", expected int64 [M] or bool [", n, "]");
    TORCH_CHECK(center.dim() == 1 && center.size(0) == 3, "anchor_decode: center has shape ", center.sizes(), ", expected [3]");
    TORCH_CHECK(hidden > 0 && hidden < 1 << 20, "anchor_decode: hidden is ", hidden, ", expected 1 to 2^20");
    TORCH_CHECK(distances >= 0 && distances < 8, "anchor_decode: distances is ", distances, ", expected 0 to 7");
    TORCH_CHECK(!bank || feature.size(1) % 4 == 0, "anchor_decode: features are ", feature.size(1), ", expected a multiple of 4 for a bank");
    check_weights("weights", weights);
    same("offset", offset);
    same("feature", feature);
    same("log_scale", log_scale);
    same("center", center);
    TORCH_CHECK(visible.device() == position.device(), "anchor_decode: visible is on ", visible.device(), ", position on ", position.device());
  }

  // What decode expects: none, or numbers of anchors and of Gaussians.
  static void check_capacity(at::IntArrayRef capacity) {
    TORCH_CHECK(capacity.empty() || (capacity.size() == 2 && capacity[0] >= 0 && capacity[1] >= 0), "anchor_decode: capacity is ", capacity,
                ", expected none, or a number of anchors and one of Gaussians");
  }

  void check_weights(const char* name, const at::Tensor& row) const {
    TORCH_CHECK(row.dim() == 1 && row.size(0) == layout().size, "anchor_decode: ", name, " has shape ", row.sizes(), ", expected [",
                layout().size, "]");
    same(name, row);
  }

  // Of decode_backward. values: scales, quats, colors, neural_opacity, kept; saved: shape, hidden_opacity, hidden_rest;
  // grads: of means, scales, quats, opacities, colors. `width`: of the saved hidden layers.
  void check_backward(at::TensorList values, at::TensorList saved, at::TensorList grads, const Optional& grad_neural, int64_t width) const {
    TORCH_CHECK(!masked(), "anchor_decode: visible is Bool, expected int64 [M] for the gradient");
    TORCH_CHECK(values.size() == 5 && saved.size() == 3 && grads.size() == 5, "anchor_decode: found ", values.size(), " values, ",
                saved.size(), " saved tensors and ", grads.size(), " gradients, expected 5, 3 and 5");
    const int64_t m = visible.size(0), k = offset.size(1), g = values[0].dim() ? values[0].size(0) : 0;
    const int64_t active = saved[2].dim() ? saved[2].size(0) : 0;
    const auto fits = [&](const char* name, const at::Tensor& tensor, at::IntArrayRef shape) {
      TORCH_CHECK(tensor.sizes() == shape, "anchor_decode: ", name, " has shape ", tensor.sizes(), ", expected ", shape);
      if (&tensor != &values[4]) same(name, tensor);
    };
    fits("scales", values[0], {g, 3});
    fits("quats", values[1], {g, 4});
    fits("colors", values[2], {g, 3});
    fits("neural_opacity", values[3], {m, k});
    fits("kept", values[4], {m, k});
    fits("shape", saved[0], {g, 4});
    fits("hidden_opacity", saved[1], {m, width});
    fits("hidden_rest", saved[2], {active, 2, width});
    fits("grad of means", grads[0], {g, 3});
    fits("grad of scales", grads[1], {g, 3});
    fits("grad of quats", grads[2], {g, 4});
    fits("grad of opacities", grads[3], {g, 1});
    fits("grad of colors", grads[4], {g, 3});
    TORCH_CHECK(values[4].scalar_type() == at::kBool && values[4].device() == position.device(), "anchor_decode: kept is ",
                values[4].scalar_type(), " on ", values[4].device(), ", expected Bool on ", position.device());
    if (grad_neural) fits("grad of neural_opacity", *grad_neural, {m, k});
  }

  void same(const char* name, const at::Tensor& tensor) const {
    TORCH_CHECK(tensor.scalar_type() == position.scalar_type(), "anchor_decode: ", name, " is ", tensor.scalar_type(), ", position is ",
                position.scalar_type());
    TORCH_CHECK(tensor.device() == position.device(), "anchor_decode: ", name, " is on ", tensor.device(), ", position on ",
                position.device());
  }

  Arguments contiguous() const {
    return {position.contiguous(), offset.contiguous(), feature.contiguous(), log_scale.contiguous(), visible.contiguous(),
            center.contiguous(), weights.contiguous(), hidden, distances, bank};
  }

  // An output, not initialized, or of zeros.
  at::Tensor empty(at::IntArrayRef shape) const { return at::empty(shape, position.options()); }
  at::Tensor zeros(at::IntArrayRef shape) const { return at::zeros(shape, position.options()); }
};

// What count_view is given; the last four are written.
struct Counted {
  at::Tensor visible, kept, neural, radii;
  Optional gradient;
  at::Tensor opacities, views, gradients, drawn;

  int64_t offsets() const { return kept.size(1); }
  int64_t columns() const { return gradient ? gradient->size(1) : 0; }

  void check() const {
    TORCH_CHECK(visible.dim() == 1 && visible.scalar_type() == at::kLong, "anchor_decode: visible is ", visible.scalar_type(), " of shape ",
                visible.sizes(), ", expected int64 [M]");
    TORCH_CHECK(kept.dim() == 2 && kept.size(0) == visible.size(0) && kept.scalar_type() == at::kBool, "anchor_decode: kept is ",
                kept.scalar_type(), " of shape ", kept.sizes(), ", expected bool [", visible.size(0), ", K]");
    TORCH_CHECK(radii.dim() == 1 && radii.scalar_type() == at::kInt, "anchor_decode: radii is ", radii.scalar_type(), " of shape ", radii.sizes(),
                ", expected int32 [G]");
    TORCH_CHECK(opacities.dim() == 1 && (opacities.scalar_type() == at::kFloat || opacities.scalar_type() == at::kDouble),
                "anchor_decode: opacities is ", opacities.scalar_type(), " of shape ", opacities.sizes(), ", expected float32 or float64 [N]");
    const int64_t n = opacities.size(0), k = offsets();
    const auto fits = [&](const char* name, const at::Tensor& tensor, at::IntArrayRef shape, bool written) {
      TORCH_CHECK(tensor.sizes() == shape && tensor.scalar_type() == opacities.scalar_type() && (!written || tensor.is_contiguous()),
                  "anchor_decode: ", name, " is ", tensor.scalar_type(), " of shape ", tensor.sizes(), ", expected ", opacities.scalar_type(),
                  " of shape ", shape, written ? ", contiguous" : "");
    };
    fits("neural_opacity", neural, kept.sizes(), false);
    fits("opacities", opacities, {n}, true);
    fits("views", views, {n}, true);
    fits("gradients", gradients, {n, k}, true);
    fits("drawn", drawn, {n, k}, true);
    if (gradient) {
      TORCH_CHECK(gradient->dim() == 2 && columns() >= 2, "anchor_decode: gradient has shape ", gradient->sizes(), ", expected [G, 2 or more]");
      fits("gradient", *gradient, {radii.size(0), columns()}, false);
    }
    for (const at::Tensor* tensor : {&visible, &kept, &neural, &radii, &views, &gradients, &drawn, gradient ? &*gradient : &drawn})
      TORCH_CHECK(tensor->device() == opacities.device(), "anchor_decode: tensors are on ", tensor->device(), " and ", opacities.device(),
                  ", expected one device");
  }

  Counted contiguous() const {
    return {visible.contiguous(), kept.contiguous(), neural.contiguous(), radii.contiguous(),
            gradient ? Optional(gradient->contiguous()) : std::nullopt, opacities, views, gradients, drawn};
  }

  // Of contiguous tensors.
  template <class T>
  Counts<T> counts() const {
    return {offsets(), columns(), visible.const_data_ptr<int64_t>(), kept.const_data_ptr<bool>(), neural.const_data_ptr<T>(),
            radii.const_data_ptr<int32_t>(), gradient ? gradient->const_data_ptr<T>() : nullptr, opacities.mutable_data_ptr<T>(),
            views.mutable_data_ptr<T>(), gradients.mutable_data_ptr<T>(), drawn.mutable_data_ptr<T>()};
  }
};

}  // namespace anchor_decode
