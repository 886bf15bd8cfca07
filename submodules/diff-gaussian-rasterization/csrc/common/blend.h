// One Gaussian at one pixel, front to back, and the gradient of the same walk.
//
// Notation: e = log2(opacity) + a dx^2 + b dx dy + c dy^2 is the base-2 exponent (a, b, c: the conic times -log2(e)/2,
// -log2(e), -log2(e)/2), alpha = min(2^e, 0.99), T the transmittance in front, w = T alpha the weight.
// Invariant: a finished pixel carries its final transmittance negated, so it fails every later test by itself; its
// lanes, and lanes outside the footprint, get alpha = 0 and leave no trace.
//
// The gradient walks front to back as well. `rest` is <gradient, what is still to come>: it starts as
// <gradient, pixel> and loses each Gaussian's share, so no transmittance is ever rebuilt by division and the walk
// takes exactly the forward's decisions.
#pragma once

#include "constants.h"
#include "scalar.h"

namespace dgr {

template <class F> DGR_HD F exponent(F log_opacity, F a, F b, F c, F dx, F dy) {
  return (a * dx + b * dy) * dx + (c * dy * dy + log_opacity);
}

// alpha, zero outside the footprint; `raw` is 2^e before the cap.
template <class F> DGR_HD F alpha_of(F e, F& raw) {
  raw = power_of_two(e);
  return select(e >= F(kLog2MinAlpha), at_most(raw, F(kMaxAlpha)), F(0));
}

// Moves T past a Gaussian and returns its weight.
template <class F> DGR_HD F blend(F alpha, F& t) {
  const F weight = t * alpha, next = t - weight;
  const auto stop = next < F(kMinTransmittance);
  t = select(stop, F(0) - magnitude(t), next);
  return select(stop, F(0), weight);
}

// The same step, with `color_grad` = <color, gradient> of this Gaussian: returns dL/de * ln 2 (the gradient of the
// natural exponent), updates t and rest.
template <class F> DGR_HD F blend_vjp(F alpha, F raw, F color_grad, F& t, F& rest, F& weight) {
  const F next = t - t * alpha;
  const auto stop = next < F(kMinTransmittance);
  alpha = select(stop, F(0), alpha);
  weight = t * alpha;
  t = select(stop, F(0) - magnitude(t), next);
  const F share = weight * color_grad;
  rest = rest - share;
  // dL/dalpha = T <color, gradient> - rest / (1 - alpha); times dalpha/de = alpha, or 0 at the cap.
  return select(raw < F(kMaxAlpha), share - rest * (alpha / (F(1) - alpha)), F(0));
}

}  // namespace dgr
