// common/adam.h over runs of rows.
#pragma once

#include "../../common/adam.h"
#include "../kernels.h"
#include "standard.h"

namespace dgr {
inline namespace DGR_VARIANT {
namespace {

template <class S>
void adam_run(const AdamStep<S>& step, const S* __restrict grads, S* __restrict params, S* __restrict moments, S* __restrict squares, int64_t n) {
  for (int64_t i = 0; i < n; ++i) adam_entry(step, grads[i], params[i], moments[i], squares[i]);
}

template <class S> void adam_all(const AdamRows<S>& in, int64_t begin, int64_t end) {
  const AdamStep<S> step(in.rate, in.root2, in.beta1, in.beta2, in.eps);
  for (int64_t first = begin; first < end;) {
    int64_t last = end;
    if (in.visible) {
      while (first < end && !in.visible[first]) ++first;
      for (last = first; last < end && in.visible[last];) ++last;
    }
    const int64_t at = first * in.columns;
    adam_run(step, in.grads + at, in.params + at, in.moments + at, in.squares + at, (last - first) * in.columns);
    first = last;
  }
}

}  // namespace
}  // namespace DGR_VARIANT
}  // namespace dgr
