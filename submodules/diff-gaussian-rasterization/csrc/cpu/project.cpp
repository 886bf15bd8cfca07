// Driver of kernels/project.h.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <optional>
#include <tuple>
#include <vector>

#include "../args.h"
#include "kernels.h"
#include "team.h"

namespace dgr {
namespace {

using at::Tensor;
using cpu_team::parallel_ranges;
using OptTensor = std::optional<Tensor>;

// Gaussians a task takes; also the grain of the ordered sum behind the gradient of the camera.
constexpr int64_t kGrain = 2048;

template <class S> const S* data(const OptTensor& t) { return t ? t->const_data_ptr<S>() : nullptr; }

template <class S>
World<S> world_of(const Tensor& means, const OptTensor& scales, const OptTensor& quats, const OptTensor& cov3d, const Tensor& world_view, double modifier) {
  return {world_view.const_data_ptr<S>(), means.const_data_ptr<S>(), data<S>(scales), data<S>(quats), data<S>(cov3d), S(modifier)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> project_cpu(
    const Tensor& means, const OptTensor& scales, const OptTensor& quats, const OptTensor& cov3d, const Tensor& world_view,
    const OptTensor& screen, double fx, double fy, double cx, double cy, int64_t width, int64_t height, double scale_modifier, double near,
    at::OptionalIntArrayRef window, const OptTensor& tiles) {
  check_shapes(means, scales, quats, cov3d, world_view, width, height);
  const Window part = window_of(window, width, height);
  check_tiles(tiles, part.width, part.height, means);
  const int64_t n = means.size(0);
  const OptTensor mask = contiguous(tiles);
  const Tensor m = means.contiguous(), w = world_view.contiguous();
  const OptTensor s = contiguous(scales), q = contiguous(quats), c = contiguous(cov3d);
  Tensor means2d = at::empty({n, 2}, means.options()), conics = at::empty({n, 3}, means.options()), depths = at::empty({n}, means.options());
  Tensor radii = at::empty({n}, means.options().dtype(at::kInt));
  on_scalar(means, [&](auto tag) {
    using S = decltype(tag);
    const View view{fx, fy, cx, cy, width, height, near, part, squares_of(mask)};
    const World<S> world = world_of<S>(m, s, q, c, w, scale_modifier);
    const ScreenRows<S> rows{means2d.data_ptr<S>(), conics.data_ptr<S>(), depths.data_ptr<S>(), radii.data_ptr<int32_t>()};
    const auto& kernel = kernels().of(S{});
    parallel_ranges(n, kGrain, [&](int64_t begin, int64_t end) { kernel.project(view, world, begin, end, rows); });
  });
  return {means2d, conics, depths, radii};
}

Tensor visible_radii_cpu(const Tensor& means, const OptTensor& scales, const OptTensor& quats, const OptTensor& cov3d, const Tensor& world_view,
                         double fx, double fy, double cx, double cy, int64_t width, int64_t height, double scale_modifier, double near,
                         at::OptionalIntArrayRef window, const OptTensor& tiles) {
  check_shapes(means, scales, quats, cov3d, world_view, width, height);
  const Window part = window_of(window, width, height);
  check_tiles(tiles, part.width, part.height, means);
  const OptTensor mask = contiguous(tiles);
  const Tensor m = means.contiguous(), w = world_view.contiguous();
  const OptTensor s = contiguous(scales), q = contiguous(quats), c = contiguous(cov3d);
  Tensor radii = at::empty({means.size(0)}, means.options().dtype(at::kInt));
  on_scalar(means, [&](auto tag) {
    using S = decltype(tag);
    const View view{fx, fy, cx, cy, width, height, near, part, squares_of(mask)};
    const World<S> world = world_of<S>(m, s, q, c, w, scale_modifier);
    const ScreenRows<S> rows{nullptr, nullptr, nullptr, radii.data_ptr<int32_t>()};
    const auto& kernel = kernels().of(S{});
    parallel_ranges(means.size(0), kGrain, [&](int64_t begin, int64_t end) { kernel.project(view, world, begin, end, rows); });
  });
  return radii;
}

// Gradients that are not wanted (or whose input is absent) come back empty.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> project_backward_cpu(
    const OptTensor& grad_means2d, const OptTensor& grad_conics, const OptTensor& grad_depths, const Tensor& means, const OptTensor& scales,
    const OptTensor& quats, const OptTensor& cov3d, const Tensor& world_view, const Tensor& conics, const Tensor& radii, double fx, double fy,
    double cx, double cy, int64_t width, int64_t height, double scale_modifier, double near, bool need_view) {
  check_shapes(means, scales, quats, cov3d, world_view, width, height);
  check_projected(means, conics, radii, grad_means2d, grad_conics, grad_depths);
  const int64_t n = means.size(0);
  const Tensor m = means.contiguous(), w = world_view.contiguous(), k = conics.contiguous(), r = radii.contiguous();
  const OptTensor s = contiguous(scales), q = contiguous(quats), c = contiguous(cov3d);
  const OptTensor g2 = contiguous(grad_means2d), gk = contiguous(grad_conics), gd = contiguous(grad_depths);
  const auto shape = [&](const OptTensor& t, int64_t columns) { return at::empty({t ? n : 0, columns}, means.options()); };
  Tensor dm = at::empty({n, 3}, means.options()), ds = shape(scales, 3), dq = shape(quats, 4), dc = shape(cov3d, 6);
  Tensor dw = at::zeros({need_view ? 4 : 0, 4}, means.options());
  on_scalar(means, [&](auto tag) {
    using S = decltype(tag);
    const View view{fx, fy, cx, cy, width, height, near, {0, 0, width, height}, {}};
    const World<S> world = world_of<S>(m, s, q, c, w, scale_modifier);
    const ProjectGrads<S> grads{k.const_data_ptr<S>(), r.const_data_ptr<int32_t>(), data<S>(g2), data<S>(gk), data<S>(gd), dm.data_ptr<S>(),
                                scales ? ds.data_ptr<S>() : nullptr, quats ? dq.data_ptr<S>() : nullptr, cov3d ? dc.data_ptr<S>() : nullptr};
    const auto& kernel = kernels().of(S{});
    // The camera's gradient: a sum for each task, added in order.
    std::vector<std::array<double, 12>> sums(need_view ? (n + kGrain - 1) / kGrain : 0);
    parallel_ranges(n, kGrain, [&](int64_t begin, int64_t end) {
      kernel.project_vjp(view, world, begin, end, grads, need_view ? sums[begin / kGrain].data() : nullptr);
    });
    std::array<double, 12> total{};
    for (const auto& sum : sums)
      for (int i = 0; i < 12; ++i) total[i] += sum[i];
    if (need_view) std::copy(total.begin(), total.end(), dw.data_ptr<S>());
  });
  return {dm, ds, dq, dc, dw};
}

}  // namespace

TORCH_LIBRARY_IMPL(diff_gaussian_rasterization, CPU, m) {
  m.impl("project", &project_cpu);
  m.impl("project_backward", &project_backward_cpu);
  m.impl("visible_radii", &visible_radii_cpu);
}

}  // namespace dgr
