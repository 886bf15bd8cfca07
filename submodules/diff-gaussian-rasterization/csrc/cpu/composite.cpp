// Driver of kernels/draw.h: tiles in parallel. The lists that it makes are those of bin.h.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <optional>
#include <tuple>
#include <vector>

#include "../args.h"
#include "bin.h"
#include "kernels.h"
#include "kernels/tiles.h"
#include "team.h"

namespace dgr {
namespace {

using at::Tensor;
using cpu_team::parallel_items;
using OptTensor = std::optional<Tensor>;

// The squares of each tile that the mask includes, one bit each; empty if all are drawn.
std::vector<uint8_t> squares_of_tiles(const OptTensor& mask, const TileGrid& grid) {
  if (!mask) return {};
  std::vector<uint8_t> out(grid.count());
  const bool* named = mask->const_data_ptr<bool>();
  for (int64_t row = 0; row < mask->size(0); ++row)
    for (int64_t column = 0; column < mask->size(1); ++column) {
      const int64_t tile = row / kSquaresDown * grid.columns + column / kSquaresAcross;
      const int64_t square = row % kSquaresDown * kSquaresAcross + column % kSquaresAcross;
      out[tile] |= uint8_t(*named++) << square;
    }
  return out;
}

struct Composite {
  Tensor image, alpha, depth, records, order, pair_start, tile_start, lists;
};

template <class S>
Composite composite(const Tensor& means2d, const Tensor& conics, const Tensor& depths, const Tensor& radii, const Tensor& opacities,
                    const Tensor& colors, const Tensor& background, const Window& window, const OptTensor& mask) {
  const TileGrid grid(window);
  const std::vector<uint8_t> squares = squares_of_tiles(mask, grid);
  const int64_t c = colors.size(1), features = c + 1, stride = record_stride<S>(features);
  const S* depth = depths.const_data_ptr<S>();
  const int32_t* radius = radii.const_data_ptr<int32_t>();
  const auto& kernel = kernels().of(S{});

  std::vector<int32_t> ids = compact(means2d.size(0), [&](int64_t g) { return (radius[g] > 0) & (depth[g] > 0); });
  sort_by_depth(ids, depth);
  const int64_t visible = int64_t(ids.size());
  const auto ints = means2d.options().dtype(at::kInt);
  Composite out;
  out.order = at::empty({visible}, ints);
  std::copy(ids.begin(), ids.end(), out.order.data_ptr<int32_t>());
  out.records = at::empty({visible, stride}, means2d.options());
  S* records = out.records.data_ptr<S>();
  const Splats<S> splats{ids.data(), means2d.const_data_ptr<S>(), conics.const_data_ptr<S>(), opacities.const_data_ptr<S>(),
                         colors.const_data_ptr<S>(), depth, c};
  Tasks(visible).run([&](int64_t, int64_t begin, int64_t end) { kernel.write_records(splats, begin, end, records, stride); });

  DrawLists<S> lists{records, stride, nullptr, nullptr, mask ? squares.data() : nullptr};
  PairCounts counts = count_pairs(visible, grid, [&](int64_t begin, int64_t end, std::vector<int32_t>& tiles, int32_t* of_tile, int32_t* of_rank) {
    kernel.list_tiles(lists, window, begin, end, tiles, of_tile, of_rank);
  });
  out.pair_start = at::empty({visible + 1}, ints);
  out.tile_start = at::empty({grid.count() + 1}, ints);
  out.lists = at::empty({2, counts.pairs}, ints);
  std::copy(counts.pair_start.begin(), counts.pair_start.end(), out.pair_start.data_ptr<int32_t>());
  std::copy(counts.tile_start.begin(), counts.tile_start.end(), out.tile_start.data_ptr<int32_t>());
  int32_t* ranks = out.lists.data_ptr<int32_t>();
  fill_lists(counts, visible, grid.count(), ranks, ranks + counts.pairs);
  lists.tile_start = counts.tile_start.data();
  lists.ranks = ranks;

  out.image = at::empty({c, window.height, window.width}, means2d.options());
  out.alpha = at::empty({window.height, window.width}, means2d.options());
  out.depth = at::empty({window.height, window.width}, means2d.options());
  const Canvas<S> canvas{window, c, background.const_data_ptr<S>(), out.image.data_ptr<S>(), out.alpha.data_ptr<S>(), out.depth.data_ptr<S>()};
  parallel_items(grid.count(), [&](int64_t tile) { kernel.draw(lists, canvas, tile); });
  return out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> composite_cpu(
    const Tensor& means2d, const Tensor& conics, const Tensor& depths, const Tensor& radii, const Tensor& opacities, const Tensor& colors,
    const Tensor& background, int64_t width, int64_t height, at::OptionalIntArrayRef window, const OptTensor& tiles,
    const OptTensor& absolute, int64_t fixed, int64_t capacity) {
  check_composite(means2d, conics, depths, radii, opacities, colors, background, width, height);
  check_fixed(fixed, means2d.size(0));
  check_capacity(capacity);  // the pairs are counted before they are written
  const Window part = window_of(window, width, height);
  check_tiles(tiles, part.width, part.height, means2d);
  Composite out;
  on_scalar(means2d, [&](auto tag) {
    out = composite<decltype(tag)>(means2d.contiguous(), conics.contiguous(), depths.contiguous(), radii.contiguous(), opacities.contiguous(),
                                   colors.contiguous(), background.contiguous(), part, contiguous(tiles));
  });
  return {out.image, out.alpha, out.depth, out.records, out.order, out.pair_start, out.tile_start, out.lists};
}

struct CompositeGrads {
  Tensor means2d, conics, depths, opacities, colors, background;
};

template <class S>
CompositeGrads composite_vjp(const OptTensor& grad_image, const OptTensor& grad_alpha, const OptTensor& grad_depth, const Tensor& image,
                             const Tensor& alpha, const Tensor& depth, const Tensor& record_rows, const Tensor& order, const Tensor& pair_start,
                             const Tensor& tile_start, const Tensor& pair_lists, int64_t gaussians, const Window& window, const OptTensor& mask,
                             int64_t fixed) {
  const int64_t c = image.size(0), stride = record_rows.size(1);
  const TileGrid grid(window);
  const std::vector<uint8_t> squares = squares_of_tiles(mask, grid);
  const int64_t visible = order.size(0), pairs = pair_lists.size(1);
  const int32_t* lists_data = pair_lists.const_data_ptr<int32_t>();
  const DrawLists<S> lists{record_rows.const_data_ptr<S>(), stride, tile_start.const_data_ptr<int32_t>(), lists_data,
                           mask ? squares.data() : nullptr};
  const auto data = [](const OptTensor& t) { return t ? t->const_data_ptr<S>() : nullptr; };
  const auto& kernel = kernels().of(S{});

  Tensor pair_rows = at::empty({pairs, pair_row(int(c + (grad_depth ? 1 : 0)))}, image.options());
  std::vector<S> background_rows(grid.count() * c, S(0));
  const CanvasGrads<S> grads{window, c, image.const_data_ptr<S>(), alpha.const_data_ptr<S>(), depth.const_data_ptr<S>(),
                             data(grad_image), data(grad_alpha), data(grad_depth), pair_rows.data_ptr<S>(), background_rows.data(),
                             fixed ? order.const_data_ptr<int32_t>() : nullptr, gaussians - fixed};
  parallel_items(grid.count(), [&](int64_t tile) { kernel.draw_vjp(lists, grads, tile); });

  CompositeGrads out;
  out.means2d = at::zeros({gaussians, 2}, image.options());
  out.conics = at::zeros({gaussians, 3}, image.options());
  out.opacities = at::zeros({gaussians, 1}, image.options());
  out.colors = at::zeros({gaussians, c}, image.options());
  out.depths = at::zeros({grad_depth ? gaussians : 0}, image.options());
  out.background = at::zeros({c}, image.options());
  const PairSums<S> sums{order.const_data_ptr<int32_t>(), pair_start.const_data_ptr<int32_t>(), lists_data + pairs, pair_rows.data_ptr<S>(), c,
                         out.means2d.data_ptr<S>(), out.conics.data_ptr<S>(), out.opacities.data_ptr<S>(), out.colors.data_ptr<S>(),
                         grad_depth ? out.depths.data_ptr<S>() : nullptr, gaussians - fixed};
  Tasks(visible).run([&](int64_t, int64_t begin, int64_t end) { kernel.sum_pairs(lists, sums, begin, end); });
  S* d_back = out.background.data_ptr<S>();
  for (int64_t tile = 0; tile < grid.count(); ++tile)
    for (int64_t k = 0; k < c; ++k) d_back[k] += background_rows[tile * c + k];
  return out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> composite_backward_cpu(
    const OptTensor& grad_image, const OptTensor& grad_alpha, const OptTensor& grad_depth, const Tensor& image, const Tensor& alpha,
    const Tensor& depth, const Tensor& records, const Tensor& order, const Tensor& pair_start, const Tensor& tile_start, const Tensor& lists,
    int64_t gaussians, int64_t left, int64_t top, const OptTensor& tiles, int64_t fixed) {
  const Window window = window_of_image(image, left, top);
  const Tensor ids = order.contiguous(), pairs = pair_start.contiguous(), starts = tile_start.contiguous(), both = lists.contiguous();
  CompositeGrads out;
  on_scalar(image, [&](auto tag) {
    using S = decltype(tag);
    check_composed(grad_image, grad_alpha, grad_depth, image, alpha, depth, records, order, pair_start, tile_start, lists, gaussians,
                   TileGrid(window).count(), record_stride<S>(image.size(0) + 1));
    check_tiles(tiles, window.width, window.height, image);
    check_lists(ids, pairs, starts, both, gaussians);
    check_fixed(fixed, gaussians);
    out = composite_vjp<S>(contiguous(grad_image), contiguous(grad_alpha), contiguous(grad_depth), image.contiguous(), alpha.contiguous(),
                           depth.contiguous(), records.contiguous(), ids, pairs, starts, both, gaussians, window, contiguous(tiles), fixed);
  });
  return {out.means2d, out.conics, out.depths, out.opacities, out.colors, out.background};
}

Tensor absolute_gradient_cpu(const OptTensor& grad_image, const OptTensor& grad_alpha, const OptTensor& grad_depth, const Tensor& image,
                             const Tensor& alpha, const Tensor& depth, const Tensor& records, const Tensor& order, const Tensor& pair_start,
                             const Tensor& tile_start, const Tensor& lists, int64_t gaussians, int64_t left, int64_t top, const OptTensor& tiles) {
  const Window window = window_of_image(image, left, top);
  const TileGrid grid(window);
  const Tensor ids = order.contiguous(), starts = pair_start.contiguous(), firsts = tile_start.contiguous(), both = lists.contiguous();
  const OptTensor gi = contiguous(grad_image), ga = contiguous(grad_alpha), gd = contiguous(grad_depth), mask = contiguous(tiles);
  const Tensor colors = image.contiguous(), opacity = alpha.contiguous(), distance = depth.contiguous(), rows_of = records.contiguous();
  Tensor out;
  on_scalar(image, [&](auto tag) {
    using S = decltype(tag);
    check_composed(grad_image, grad_alpha, grad_depth, image, alpha, depth, records, order, pair_start, tile_start, lists, gaussians,
                   grid.count(), record_stride<S>(image.size(0) + 1));
    check_tiles(tiles, window.width, window.height, image);
    check_lists(ids, starts, firsts, both, gaussians);
    const std::vector<uint8_t> squares = squares_of_tiles(mask, grid);
    const int64_t pairs = both.size(1);
    const int32_t *all = both.const_data_ptr<int32_t>(), *start = starts.const_data_ptr<int32_t>(), *id = ids.const_data_ptr<int32_t>();
    const DrawLists<S> walked{rows_of.const_data_ptr<S>(), rows_of.size(1), firsts.const_data_ptr<int32_t>(), all, mask ? squares.data() : nullptr};
    const auto data = [](const OptTensor& t) { return t ? t->const_data_ptr<S>() : nullptr; };
    Tensor pair_rows = at::zeros({pairs, 2}, image.options());
    S* rows = pair_rows.data_ptr<S>();
    const CanvasGrads<S> grads{window, image.size(0), colors.const_data_ptr<S>(), opacity.const_data_ptr<S>(), distance.const_data_ptr<S>(),
                               data(gi), data(ga), data(gd), rows, nullptr, nullptr, 0};
    const auto& kernel = kernels().of(S{});
    parallel_items(grid.count(), [&](int64_t tile) { kernel.absolute(walked, grads, tile); });
    out = at::zeros({gaussians, 2}, image.options());
    S* sums = out.data_ptr<S>();
    for (int64_t rank = 0; rank < ids.size(0); ++rank)
      for (int64_t pair = start[rank]; pair < start[rank + 1]; ++pair)
        for (int k = 0; k < 2; ++k) sums[2 * id[rank] + k] += rows[2 * all[pairs + pair] + k];
  });
  return out;
}

Tensor median_cpu(const Tensor& alpha, const Tensor& records, const Tensor& order, const Tensor& tile_start, const Tensor& lists,
                  int64_t left, int64_t top) {
  const Window window = window_of_plane(alpha, left, top);
  const TileGrid grid(window);
  const Tensor ids = order.contiguous(), firsts = tile_start.contiguous(), both = lists.contiguous(), rows = records.contiguous();
  Tensor out = at::full({window.height, window.width}, -1, alpha.options().dtype(at::kInt));
  on_scalar(alpha, [&](auto tag) {
    using S = decltype(tag);
    check_walked(alpha, rows, ids, firsts, both, grid.count(), kHeader<S>);
    check_ranks(firsts, both, ids.numel());
    const DrawLists<S> walked{rows.const_data_ptr<S>(), rows.size(1), firsts.const_data_ptr<int32_t>(), both.const_data_ptr<int32_t>(), nullptr};
    const Medians medians{window, ids.const_data_ptr<int32_t>(), out.data_ptr<int32_t>()};
    const auto& kernel = kernels().of(S{});
    parallel_items(grid.count(), [&](int64_t tile) { kernel.median(walked, medians, tile); });
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(diff_gaussian_rasterization, CPU, m) {
  m.impl("absolute_gradient", &absolute_gradient_cpu);
  m.impl("composite", &composite_cpu);
  m.impl("composite_backward", &composite_backward_cpu);
  m.impl("median", &median_cpu);
}

}  // namespace dgr
