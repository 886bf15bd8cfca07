// The share of its opacity that a Gaussian keeps when the low-pass filter spreads it: the 2-D Mip filter of
// Mip-Splatting (Yu et al. 2024, eq. 9), with the lower bound of 3DGS.
//
// Notation: K the screen covariance with the filter in it, C = K^-1 = (a, b, c) the conic, h the filter's variance. The
// covariance without it is K - h I, so that the share, sqrt(det(K - h I) / det K), is sqrt(det(I - h C)): a polynomial of
// the conic, in which nothing large cancels.
#pragma once

#include "constants.h"
#include "scalar.h"

namespace dgr {
inline namespace DGR_VARIANT {

// det(I - h C), which is in (0, 1).
template <class S> DGR_HD S unspread(const S* conic) {
  const S h(kLowPass), hb = h * conic[1];
  return (S(1) - h * conic[0]) * (S(1) - h * conic[2]) - hb * hb;
}

template <class S> DGR_HD S compensation(const S* conic) { return root(at_least(unspread(conic), S(kMinUnspread))); }

// `g`: the gradient of opacity * compensation. Writes that of the conic; returns that of the opacity.
template <class S> DGR_HD S compensation_vjp(const S* conic, S opacity, S g, S* grad_conic) {
  const S share = compensation(conic), h(kLowPass);
  // At the bound there is no slope.
  const S d = select(unspread(conic) > S(kMinUnspread), S(0.5) * g * opacity / share, S(0));
  grad_conic[0] = d * (h * h * conic[2] - h);
  grad_conic[1] = d * (S(-2) * h * h * conic[1]);
  grad_conic[2] = d * (h * h * conic[0] - h);
  return g * share;
}

}  // namespace DGR_VARIANT
}  // namespace dgr
