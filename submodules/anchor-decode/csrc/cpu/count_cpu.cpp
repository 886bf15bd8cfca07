// CPU driver of common/count.h: one thread, as it takes microseconds.
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include "../arguments.h"

namespace anchor_decode {
namespace {

template <class T>
void count_as(const Counted& a) {
  const int64_t n = a.opacities.size(0), anchors = a.visible.size(0);
  const Counts<T> counts = a.counts<T>();
  int64_t kept = 0;
  for (int64_t i = 0; i < a.kept.numel(); ++i) kept += counts.kept[i];
  TORCH_CHECK(kept == a.radii.size(0), "anchor_decode: kept has ", kept, " Gaussians, radii ", a.radii.size(0));
  for (int64_t m = 0; m < anchors; ++m)
    TORCH_CHECK(counts.visible[m] >= 0 && counts.visible[m] < n, "anchor_decode: visible holds ", counts.visible[m], ", expected rows of ", n,
                " anchors");
  for (int64_t m = 0, gaussian = 0; m < anchors; ++m) gaussian = count_anchor(counts, m, gaussian);
}

void count_view(const at::Tensor& visible, const at::Tensor& kept, const at::Tensor& neural, const at::Tensor& radii, const Optional& gradient,
                const at::Tensor& opacities, const at::Tensor& views, const at::Tensor& gradients, const at::Tensor& drawn) {
  const Counted given{visible, kept, neural, radii, gradient, opacities, views, gradients, drawn};
  given.check();
  if (opacities.scalar_type() == at::kFloat) count_as<float>(given.contiguous());
  else count_as<double>(given.contiguous());
}

}  // namespace
}  // namespace anchor_decode

TORCH_LIBRARY_IMPL(anchor_decode, CPU, m) { m.impl("count_view", anchor_decode::count_view); }
