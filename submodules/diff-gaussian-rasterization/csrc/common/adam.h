// One entry of a parameter in a step of Adam (Kingma and Ba 2015, algorithm 1).
#pragma once

#include "scalar.h"

namespace dgr {
inline namespace DGR_VARIANT {

// `rate`: the learning rate over the bias correction of the first moment; `root2`: the root of that of the second.
template <class S> struct AdamStep {
  S rate, inverse2, beta1, beta2, rest1, rest2, eps;

  // Divided here, as a division takes as long as all else of an entry.
  // 1 - beta in double: in float, 1 - 0.999 is off by 5e-5 of itself.
  DGR_HD AdamStep(double rate, double root2, double b1, double b2, double eps)
      : rate(S(rate)), inverse2(S(1 / root2)), beta1(S(b1)), beta2(S(b2)), rest1(S(1 - b1)), rest2(S(1 - b2)), eps(S(eps)) {}
};

template <class S> DGR_HD void adam_entry(const AdamStep<S>& step, S grad, S& param, S& moment, S& square) {
  moment = step.beta1 * moment + step.rest1 * grad;
  square = step.beta2 * square + step.rest2 * grad * grad;
  param -= step.rate * moment / (root(square) * step.inverse2 + step.eps);
}

}  // namespace DGR_VARIANT
}  // namespace dgr
