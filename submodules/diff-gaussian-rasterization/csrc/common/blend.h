// One Gaussian at one pixel, front to back, and the gradient in the same order.
//
// Notation: e = log2(opacity) + a dx^2 + b dx dy + c dy^2 is the base-2 exponent (a, b, c: the conic times -log2(e)/2,
// -log2(e), -log2(e)/2), alpha = min(2^e, 0.99), T the transmittance in front, w = T alpha the weight.
// Invariant: a finished pixel stores its final transmittance negated, so it fails every later test without a further
// one; its lanes, and lanes outside the footprint, get alpha = 0 and change nothing.
//
// The gradient visits Gaussians front to back as well. `rest` is <gradient, colour of what follows>: it starts as
// <gradient, pixel>, and the share of each Gaussian is subtracted. So transmittances need not be reconstructed by
// division, and every decision is that of the forward pass: whether a pixel is inside of the footprint, under the cap,
// or finished follows from exponent() and from the transmittance, which both passes compute by the same roundings.
#pragma once

#include "constants.h"
#include "scalar.h"

namespace dgr {
inline namespace DGR_VARIANT {

// e as a polynomial of dx in one row of pixels: (a dx + linear) dx + constant.
template <class F> struct RowTerms { F linear, constant; };

template <class F> DGR_HD RowTerms<F> row_terms(F log_opacity, F b, F c, F dy) { return {product(b, dy), fused(product(c, dy), dy, log_opacity)}; }

template <class F> DGR_HD F exponent(F a, const RowTerms<F>& row, F dx) { return fused(fused(a, dx, row.linear), dx, row.constant); }

// alpha before the footprint is cut out of it, the mask of the footprint, and the mask where the cap does not hold.
template <class F> struct Opacity {
  F alpha;
  decltype(F() < F()) inside, below_cap;
};

template <class F> DGR_HD Opacity<F> opacity_at(F e) {
  const F raw = power_of_two(e);
  return {at_most(raw, F(kMaxAlpha)), e >= F(kLog2MinAlpha), raw < F(kMaxAlpha)};
}

// Moves T past a Gaussian and returns its weight.
template <class F> DGR_HD F blend(const Opacity<F>& o, F& t) {
  const F weight = product(t, select(o.inside, o.alpha, F(0))), next = difference(t, weight);
  const auto stop = next < F(kMinTransmittance);
  t = select(stop, F(0) - magnitude(t), next);
  return select(stop, F(0), weight);
}

// The same step, with `color_grad` = <color, gradient> of this Gaussian: returns the gradient of ln alpha before the
// cap, updates t and rest.
template <class F> DGR_HD F blend_vjp(const Opacity<F>& o, F color_grad, F& t, F& rest, F& weight) {
  const F odds = o.alpha * reciprocal(F(1) - o.alpha);  // first, as it has the longest latency
  const F full = product(t, select(o.inside, o.alpha, F(0))), next = difference(t, full);
  const auto stop = next < F(kMinTransmittance);
  weight = select(stop, F(0), full);
  t = select(stop, F(0) - magnitude(t), next);
  const F share = weight * color_grad;
  rest = rest - share;
  // dL/dalpha = T <color, gradient> - rest / (1 - alpha), times dalpha/d(ln alpha) = alpha; nothing where the Gaussian
  // was skipped or capped.
  return select(o.inside & o.below_cap & (next >= F(kMinTransmittance)), share - rest * odds, F(0));
}

}  // namespace DGR_VARIANT
}  // namespace dgr
