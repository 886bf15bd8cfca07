// Driver of common/blend.h: tiles in parallel, a vector of pixels of one row at a time.
//
// A tile keeps its planes (transmittance, channels) in cache and walks its list front to back. For each Gaussian the
// exact span of every pixel row becomes a list of vectors ("cells") to touch; one flat loop visits them.
// Gradients of a (tile, Gaussian) pair go to the pair's own row of a buffer, in the order of the tile's list (one
// stream: scattered stores would stall the walk); a second pass gathers and adds the rows of each Gaussian in order. So nothing is shared, and results have the same bits for any number of threads.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <optional>
#include <tuple>
#include <vector>

#include "../common/blend.h"
#include "../args.h"
#include "bin.h"
#include "parallel.h"
#include "simd.h"

namespace dgr {
namespace {

using at::Tensor;
using OptTensor = std::optional<Tensor>;

template <class S> using V = Vec<S, kLanes>;

// From one plane of a tile to the next: not a power of two, or the planes would share their cache sets.
constexpr int kPlane = kTilePixels + 16;
// Cells that go through the formulas in step.
constexpr int kStep = 4;
constexpr int kCellsPerRow = kTileWidth / kLanes;
constexpr int kLaneBits = 3;
// Cells start at multiples of this. Whole vectors would take a tenth more cells, single pixels more split cache lines.
constexpr int kCellAlign = 4;
static_assert(1 << kLaneBits == kLanes && kTileHeight + kLanes <= 64 && kTileWidth % kLanes == 0);
// A tile that is finished is noticed, and finished rows are skipped, every so many Gaussians.
constexpr int kLivenessStride = 16;
// Moments of a pair: sums over its pixels of v, v dx, v dy, v dx dx, v dx dy, v dy dy, with v the gradient of ln alpha.
constexpr int kMoments = 6;
// Scalars in a pair's row of gradients: moments, features, and up to whole steps of sum_lanes.
DGR_HD constexpr int pair_row(int features) { return (kMoments + features + 3) / 4 * 4; }
// How far ahead of the list records are fetched.
constexpr int kPrefetch = 4;
// The same for rows of gradients when they are added up.
constexpr int kPrefetchRows = 16;

// Centres of pixels from the corner of the tile; a group of rows may start anywhere in it.
template <class S> struct Centers {
  static constexpr int kCount = std::max(kTileWidth, kTileHeight) + kLanes;
  alignas(64) S at[kCount];
  constexpr Centers() : at() {
    for (int i = 0; i < kCount; ++i) at[i] = S(i) + S(0.5);
  }
};
template <class S> constexpr Centers<S> kCenters{};

using Ints = NativeOf<float, kLanes>::Bits;
constexpr Ints kLane = {0, 1, 2, 3, 4, 5, 6, 7};
template <class S> DGR_HD Ints ints(V<S> a) { return __builtin_convertvector(a.v, Ints); }
template <class S> DGR_HD Ints ints(Mask<S, kLanes> a) { return __builtin_convertvector(a.m, Ints); }

// What a Gaussian covers of a tile: the cells (offsets of vectors in the tile's planes), row by row, and its terms in
// every row that has one. Sized for the full tile and for what `pack` may write past it; a cell on the pad
// finds finite terms.
template <class S> struct Cover {
  int count;
  uint32_t cells[kTileHeight * kCellsPerRow + kLanes];
  S dy[kTileHeight + kLanes] = {}, linear[kTileHeight + kLanes] = {}, constant[kTileHeight + kLanes] = {};
};

// `x`, `y`: centre of the footprint from the corner of the tile; bit r of `live`: row r has unfinished pixels.
template <class S> DGR_HD void cover(const Record<S>& r, S x, S y, uint64_t live, Cover<S>& out) {
  out.count = 0;
  const S top = std::max(y - r.half_height, S(0)), bottom = std::min(y + r.half_height, S(kTileHeight));
  if (!(top < bottom)) return;
  const int last_row = std::min(int(bottom), kTileHeight - 1);
  uint32_t* next = out.cells;
  for (int base = int(top); base <= last_row; base += kLanes) {
    const V<S> dy = V<S>::load(kCenters<S>.at + base) - V<S>(y);
    const RowTerms<V<S>> terms = row_terms(V<S>(r.log_opacity), V<S>(r.b), V<S>(r.c), dy);
    dy.store(out.dy + base);
    terms.linear.store(out.linear + base);
    terms.constant.store(out.constant + base);
    const V<S> square = V<S>(r.width2) - V<S>(r.bend) * dy * dy;
    const V<S> half = root(at_least(square, V<S>(S(0)))) + V<S>(S(kSlackPixels));
    const V<S> middle = V<S>(x - S(0.5)) + V<S>(r.slope) * dy;
    const V<S> left = at_most(at_least(middle - half, V<S>(S(0))), V<S>(S(kTileWidth)));
    const V<S> right = at_most(at_least(middle + half, V<S>(S(-1))), V<S>(S(kTileWidth - 1)));
    // ceil(left) for left >= 0 and floor(right) for right >= -1, up to the slack.
    const Ints first = ints(left + V<S>(S(0.999))), last = ints(right + V<S>(S(1))) - 1;
    const Ints meets = (last >= first) & ints(square > V<S>(S(-kSlackPixels) * r.width2));
    const Ints is_live = -((Ints{} + int32_t(live >> base)) >> kLane & 1);
    // The cells of a row start at its span, a little to the left for alignment, or further where they would leave the
    // tile.
    const Ints aligned = first & -kCellAlign;
    const Ints count = ((last - aligned + kLanes) >> kLaneBits) & meets & is_live;
    const Ints room = kTileWidth - kLanes * count;
    const Ints start = (aligned < room ? aligned : room) + (base + kLane) * kTileWidth;
    for (int k = 0; k < kCellsPerRow; ++k) next += pack(start + k * kLanes, count > k, next);
  }
  out.count = int(next - out.cells);
  // Whole steps: the rest falls on the pad behind the planes, where every pixel is finished.
  for (int i = 0; i < kStep - 1; ++i) next[i] = kTilePixels;
}

struct Region {
  int64_t x, y;
  int width, height;  // of the tile inside the image

  Region(const TileGrid& grid, int64_t tile)
      : x(tile % grid.columns * kTileWidth),
        y(tile / grid.columns * kTileHeight),
        width(int(std::min<int64_t>(kTileWidth, grid.width - x))),
        height(int(std::min<int64_t>(kTileHeight, grid.height - y))) {}
};

// Pixels outside the image, and on the pad of the plane, count as finished.
template <class S> void start_transmittance(const Region& region, S* t) {
  for (int row = 0; row < kTileHeight; ++row)
    for (int column = 0; column < kTileWidth; ++column)
      t[row * kTileWidth + column] = row < region.height && column < region.width ? S(1) : S(-1);
  std::fill(t + kTilePixels, t + kPlane, S(-1));
}

template <class S> uint64_t live_rows(const S* t) {
  uint64_t live = 0;
  for (int row = 0; row < kTileHeight; ++row) {
    V<S> best = V<S>::load(t + row * kTileWidth);
    for (int k = 1; k < kCellsPerRow; ++k) {
      const V<S> next = V<S>::load(t + row * kTileWidth + k * kLanes);
      best = select(next > best, next, best);
    }
    bool any = false;
    for (int lane = 0; lane < kLanes; ++lane) any |= best[lane] > S(0);
    live |= uint64_t(any) << row;
  }
  return live;
}

template <class S> struct Lists {
  const S* records;
  int64_t stride;
  const int32_t *tile_start, *ranks;

  const Record<S>& record(int32_t rank) const { return *reinterpret_cast<const Record<S>*>(records + rank * stride); }
};

// Walks the list of a tile: draw(record, x, cover, position) for each Gaussian until the tile is finished.
// Returns the position behind the last Gaussian drawn.
template <class S, class Draw> DGR_HD int32_t walk(const Lists<S>& lists, const Region& region, int64_t tile, const S* t, const Draw& draw) {
  Cover<S> covered;
  const int32_t begin = lists.tile_start[tile], end = lists.tile_start[tile + 1];
  uint64_t live = 0;
  for (int32_t i = begin; i < end; ++i) {
    if ((i - begin) % kLivenessStride == 0 && !(live = live_rows(t))) return i;
    if (i + kPrefetch < end) {
      const char* ahead = reinterpret_cast<const char*>(&lists.record(lists.ranks[i + kPrefetch]));
      for (int64_t byte = 0; byte < lists.stride * int64_t(sizeof(S)); byte += 64) __builtin_prefetch(ahead + byte);
    }
    const Record<S>& record = lists.record(lists.ranks[i]);
    const S x = record.x - S(region.x);
    cover(record, x, record.y - S(region.y), live, covered);
    draw(record, x, covered, i);
  }
  return end;
}

// Channels known when compiling (C > 0) stay in registers; C = 0 reads the number from `runtime`.
template <int C> DGR_HD constexpr int channels(int runtime) { return C > 0 ? C : runtime; }

// kStep cells of a Gaussian at once: loads and stores of their places in a plane.
template <class S> using Cells = Group<V<S>, kStep>;

template <class S> DGR_HD Cells<S> load_cells(const S* plane, const uint32_t* at) {
  Cells<S> r;
  for (int i = 0; i < kStep; ++i) r.v[i] = V<S>::load(plane + at[i]);
  return r;
}
template <class S> DGR_HD void store_cells(const Cells<S>& cells, S* plane, const uint32_t* at) {
  for (int i = 0; i < kStep; ++i) cells.v[i].store(plane + at[i]);
}
template <class S> DGR_HD Cells<S> of_rows(const S* table, const uint32_t* at) {
  Cells<S> r;
  for (int i = 0; i < kStep; ++i) r.v[i] = V<S>(table[at[i] / kTileWidth]);
  return r;
}
template <class S> DGR_HD Cells<S> of_columns(const uint32_t* at) {
  Cells<S> r;
  for (int i = 0; i < kStep; ++i) r.v[i] = V<S>::load(kCenters<S>.at + at[i] % kTileWidth);
  return r;
}

template <class S, int C>
void draw_tile(const Lists<S>& lists, const Region& region, int64_t tile, int runtime, S* t, S* planes) {
  walk(lists, region, tile, t, [=](const Record<S>& r, S x, const Cover<S>& cover, int64_t) {
    const int n = channels<C>(runtime);
    const S* features = r.features();
    const Cells<S> a{V<S>(r.a)}, vx{V<S>(x)};
    for (int k = 0; k < cover.count; k += kStep) {
      const uint32_t* at = cover.cells + k;
      const Cells<S> dx = of_columns<S>(at) - vx;
      Cells<S> trans = load_cells(t, at);
      const Cells<S> weight = blend(opacity_at(exponent(a, {of_rows(cover.linear, at), of_rows(cover.constant, at)}, dx)), trans);
      store_cells(trans, t, at);
      for (int f = 0; f < n; ++f) {
        S* plane = planes + f * kPlane;
        store_cells(load_cells(plane, at) + weight * Cells<S>(V<S>(features[f])), plane, at);
      }
    }
  });
}

// A: the gradient of alpha is there.
template <class S, int C, bool A>
void draw_tile_vjp(const Lists<S>& lists, const Region& region, int64_t tile, int runtime, S* t, S* rest, const S* grads,
                   V<S>* runtime_sums, S* pair_grads) {
  const int32_t drawn = walk(lists, region, tile, t, [=](const Record<S>& r, S x, const Cover<S>& cover, int64_t position) {
    const int n = channels<C>(runtime);
    const S *alpha_grads = grads + n * kPlane, *features = r.features();
    const V<S> zero(S(0));
    const Cells<S> a{V<S>(r.a)}, vx{V<S>(x)};
    V<S> local[C > 0 ? pair_row(C) : 1];
    V<S>* sums = C > 0 ? local : runtime_sums;
    for (int i = 0; i < pair_row(n); ++i) sums[i] = zero;
    for (int k = 0; k < cover.count; k += kStep) {
      const uint32_t* at = cover.cells + k;
      const Cells<S> dx = of_columns<S>(at) - vx;
      Cells<S> weight, trans = load_cells(t, at), left = load_cells(rest, at);
      const Opacity<Cells<S>> opacity = opacity_at(exponent(a, {of_rows(cover.linear, at), of_rows(cover.constant, at)}, dx));
      Cells<S> color_grad = A ? load_cells(alpha_grads, at) : Cells<S>(zero);
      for (int f = 0; f < n; ++f) color_grad = color_grad + load_cells(grads + f * kPlane, at) * Cells<S>(V<S>(features[f]));
      const Cells<S> v = blend_vjp(opacity, color_grad, trans, left, weight);
      store_cells(trans, t, at);
      store_cells(left, rest, at);
      const Cells<S> dy = of_rows(cover.dy, at), vdx = v * dx, vdy = v * dy;
      for (int i = 0; i < kStep; ++i) {
        sums[0] = sums[0] + v.v[i];
        sums[1] = sums[1] + vdx.v[i];
        sums[2] = sums[2] + vdy.v[i];
        sums[3] = sums[3] + vdx.v[i] * dx.v[i];
        sums[4] = sums[4] + vdx.v[i] * dy.v[i];
        sums[5] = sums[5] + vdy.v[i] * dy.v[i];
        for (int f = 0; f < n; ++f) sums[kMoments + f] = sums[kMoments + f] + weight.v[i] * V<S>::load(grads + f * kPlane + at[i]);
      }
    }
    for (int i = 0; i < pair_row(n); i += 4) sum_lanes(sums + i, pair_grads + position * pair_row(n) + i);
  });
  const int row_size = pair_row(channels<C>(runtime));
  std::fill(pair_grads + drawn * row_size, pair_grads + lists.tile_start[tile + 1] * row_size, S(0));
}

// Copies between a tile's plane and its place in an image; whole rows at a size that the compiler knows.
template <class S> void copy_row(const S* from, int width, S* to) {
  if (width == kTileWidth) std::memcpy(to, from, kTileWidth * sizeof(S));
  else std::copy_n(from, width, to);
}

template <class S> void load_plane(const S* image, const TileGrid& grid, const Region& region, S* plane) {
  for (int row = 0; row < kTileHeight; ++row) {
    const int width = row < region.height ? region.width : 0;
    copy_row(image + (region.y + row) * grid.width + region.x, width, plane + row * kTileWidth);
    std::fill(plane + row * kTileWidth + width, plane + (row + 1) * kTileWidth, S(0));
  }
}

template <class S> void store_plane(const S* plane, const TileGrid& grid, const Region& region, S* image) {
  for (int row = 0; row < region.height; ++row)
    copy_row(plane + row * kTileWidth, region.width, image + (region.y + row) * grid.width + region.x);
}

// Calls f with the number of channels as a compile-time constant where that pays.
template <class F> void on_channels(int64_t n, const F& f) {
  switch (n) {
    case 1: return f(std::integral_constant<int, 1>{});
    case 3: return f(std::integral_constant<int, 3>{});
    case 4: return f(std::integral_constant<int, 4>{});
    default: return f(std::integral_constant<int, 0>{});
  }
}

// Planes start on a cache line.
template <class S> class Scratch {
 public:
  explicit Scratch(int64_t n) : storage_(n + 64 / sizeof(S)) {}
  S* data() { return reinterpret_cast<S*>((reinterpret_cast<uintptr_t>(storage_.data()) + 63) / 64 * 64); }

 private:
  std::vector<S> storage_;
};

struct Composite {
  Tensor image, alpha, depth, records, order, pair_start, tile_start, lists;
};

template <class S>
Composite composite(const Tensor& means2d, const Tensor& conics, const Tensor& depths, const Tensor& radii, const Tensor& opacities,
                    const Tensor& colors, const Tensor& background, int64_t width, int64_t height) {
  const TileGrid grid(width, height);
  const int64_t c = colors.size(1), features = c + 1, stride = record_stride<S>(features);
  const S *mean = means2d.const_data_ptr<S>(), *conic = conics.const_data_ptr<S>(), *depth = depths.const_data_ptr<S>();
  const S *opacity = opacities.const_data_ptr<S>(), *color = colors.const_data_ptr<S>();
  const int32_t* radius = radii.const_data_ptr<int32_t>();

  std::vector<int32_t> ids = compact(means2d.size(0), [&](int64_t g) { return radius[g] > 0 && depth[g] > 0; });
  sort_by_depth(ids, depth);
  const int64_t visible = int64_t(ids.size());
  const auto ints = means2d.options().dtype(at::kInt);
  Composite out;
  out.order = at::empty({visible}, ints);
  std::copy(ids.begin(), ids.end(), out.order.data_ptr<int32_t>());
  out.records = at::empty({visible, stride}, means2d.options());
  S* records = out.records.data_ptr<S>();
  Tasks(visible).run([&](int64_t, int64_t begin, int64_t end) {
    for (int64_t rank = begin; rank < end; ++rank) {
      if (rank + kPrefetchRows < end) {
        const int64_t ahead = ids[rank + kPrefetchRows];
        __builtin_prefetch(mean + 2 * ahead);
        __builtin_prefetch(conic + 3 * ahead);
        __builtin_prefetch(color + c * ahead);
        __builtin_prefetch(opacity + ahead);
      }
      const int64_t g = ids[rank];
      Record<S>& r = *reinterpret_cast<Record<S>*>(records + rank * stride);
      make_record(mean + 2 * g, conic + 3 * g, opacity[g], r);
      S product = 0;  // NaN if any feature is NaN or Inf
      for (int64_t k = 0; k < c; ++k) product += (r.features()[k] = color[g * c + k]) * S(0);
      r.features()[c] = depth[g];
      if (!(product + depth[g] * S(0) == 0)) make_empty(r);
      std::fill(r.features() + features, records + (rank + 1) * stride, S(0));
    }
  });

  Lists<S> lists{records, stride, nullptr, nullptr};
  PairCounts counts = count_pairs<S>(visible, grid, [&](int64_t rank) -> const Record<S>& { return lists.record(int32_t(rank)); });
  out.pair_start = at::empty({visible + 1}, ints);
  out.tile_start = at::empty({grid.count() + 1}, ints);
  out.lists = at::empty({2, counts.pairs}, ints);
  std::copy(counts.pair_start.begin(), counts.pair_start.end(), out.pair_start.data_ptr<int32_t>());
  std::copy(counts.tile_start.begin(), counts.tile_start.end(), out.tile_start.data_ptr<int32_t>());
  int32_t* ranks = out.lists.data_ptr<int32_t>();
  fill_lists(counts, visible, grid.count(), ranks, ranks + counts.pairs);
  lists.tile_start = counts.tile_start.data();
  lists.ranks = ranks;

  out.image = at::empty({c, height, width}, means2d.options());
  out.alpha = at::empty({height, width}, means2d.options());
  out.depth = at::empty({height, width}, means2d.options());
  S *image = out.image.data_ptr<S>(), *alpha_image = out.alpha.data_ptr<S>(), *depth_image = out.depth.data_ptr<S>();
  const S* back = background.const_data_ptr<S>();
  on_channels(features, [&](auto tag) {
    constexpr int C = decltype(tag)::value;
    parallel_items(grid.count(), [&](int64_t tile) {
      Scratch<S> scratch((1 + features) * kPlane);
      S *t = scratch.data(), *planes = t + kPlane;
      const Region region(grid, tile);
      start_transmittance(region, t);
      draw_tile<S, C>(lists, region, tile, int(features), t, planes);
      for (int i = 0; i < kTilePixels; ++i) t[i] = std::abs(t[i]);
      for (int64_t k = 0; k < c; ++k) {
        S* plane = planes + k * kPlane;
        for (int i = 0; i < kTilePixels; ++i) plane[i] += back[k] * t[i];
        store_plane(plane, grid, region, image + k * height * width);
      }
      store_plane(planes + c * kPlane, grid, region, depth_image);
      for (int i = 0; i < kTilePixels; ++i) t[i] = S(1) - t[i];
      store_plane(t, grid, region, alpha_image);
    });
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> composite_cpu(
    const Tensor& means2d, const Tensor& conics, const Tensor& depths, const Tensor& radii, const Tensor& opacities, const Tensor& colors,
    const Tensor& background, int64_t width, int64_t height) {
  check_composite(means2d, conics, depths, radii, opacities, colors, background, width, height);
  Composite out;
  on_scalar(means2d, [&](auto tag) {
    out = composite<decltype(tag)>(means2d.contiguous(), conics.contiguous(), depths.contiguous(), radii.contiguous(), opacities.contiguous(),
                                   colors.contiguous(), background.contiguous(), width, height);
  });
  return {out.image, out.alpha, out.depth, out.records, out.order, out.pair_start, out.tile_start, out.lists};
}

struct CompositeGrads {
  Tensor means2d, conics, depths, opacities, colors, background;
};

template <class S>
CompositeGrads composite_vjp(const OptTensor& grad_image, const OptTensor& grad_alpha, const OptTensor& grad_depth, const Tensor& image,
                             const Tensor& alpha, const Tensor& depth, const Tensor& record_rows, const Tensor& order, const Tensor& pair_start,
                             const Tensor& tile_start, const Tensor& pair_lists, int64_t gaussians) {
  const int64_t c = image.size(0), height = image.size(1), width = image.size(2), pixels = height * width, stride = record_rows.size(1);
  const TileGrid grid(width, height);
  // Depth is the last feature: without a gradient it is left off the end.
  const int64_t features = c + (grad_depth ? 1 : 0), row_size = pair_row(int(features));
  const int64_t visible = order.size(0), pairs = pair_lists.size(1);
  const int32_t* lists_data = pair_lists.const_data_ptr<int32_t>();
  const Lists<S> lists{record_rows.const_data_ptr<S>(), stride, tile_start.const_data_ptr<int32_t>(), lists_data};
  const S *images[3] = {image.const_data_ptr<S>(), alpha.const_data_ptr<S>(), depth.const_data_ptr<S>()};
  const S* g_image = grad_image ? grad_image->const_data_ptr<S>() : nullptr;
  const S* g_alpha = grad_alpha ? grad_alpha->const_data_ptr<S>() : nullptr;
  const S* g_depth = grad_depth ? grad_depth->const_data_ptr<S>() : nullptr;

  Tensor pair_rows = at::empty({pairs, row_size}, image.options());
  S* pair_grads = pair_rows.data_ptr<S>();
  std::vector<S> background_rows(grid.count() * c, S(0));
  on_channels(features, [&](auto tag) {
    constexpr int C = decltype(tag)::value;
    parallel_items(grid.count(), [&](int64_t tile) {
      Scratch<S> scratch((3 + features) * kPlane + row_size * kLanes);
      S *t = scratch.data(), *rest = t + kPlane, *grads = rest + kPlane, *alpha_grads = grads + features * kPlane;
      V<S>* sums = reinterpret_cast<V<S>*>(alpha_grads + kPlane);
      const Region region(grid, tile);
      // <gradient, pixel>: what is still to come, in front of the first Gaussian.
      const auto take = [&](const S* gradient, const S* image, S* plane) {
        S* value = t;  // not yet in use
        load_plane(gradient, grid, region, plane);
        load_plane(image, grid, region, value);
        for (int i = 0; i < kTilePixels; ++i) rest[i] += plane[i] * value[i];
      };
      if (g_image)
        for (int64_t k = 0; k < c; ++k) take(g_image + k * pixels, images[0] + k * pixels, grads + k * kPlane);
      if (g_depth) take(g_depth, images[2], grads + c * kPlane);
      if (g_alpha) take(g_alpha, images[1], alpha_grads);
      load_plane(images[1], grid, region, t);
      for (int64_t k = 0; k < c; ++k) {
        S total = 0;
        for (int i = 0; i < kTilePixels; ++i) total += grads[k * kPlane + i] * (S(1) - t[i]);
        background_rows[tile * c + k] = total;
      }
      start_transmittance(region, t);
      (g_alpha ? draw_tile_vjp<S, C, true> : draw_tile_vjp<S, C, false>)(lists, region, tile, int(features), t, rest, grads, sums, pair_grads);
    });
  });

  CompositeGrads out;
  out.means2d = at::zeros({gaussians, 2}, image.options());
  out.conics = at::zeros({gaussians, 3}, image.options());
  out.opacities = at::zeros({gaussians, 1}, image.options());
  out.colors = at::zeros({gaussians, c}, image.options());
  out.depths = at::zeros({grad_depth ? gaussians : 0}, image.options());
  out.background = at::zeros({c}, image.options());
  S *d_means = out.means2d.data_ptr<S>(), *d_conics = out.conics.data_ptr<S>(), *d_opacities = out.opacities.data_ptr<S>();
  S *d_colors = out.colors.data_ptr<S>(), *d_depths = grad_depth ? out.depths.data_ptr<S>() : nullptr, *d_back = out.background.data_ptr<S>();
  const int32_t *ids = order.const_data_ptr<int32_t>(), *start = pair_start.const_data_ptr<int32_t>();
  const int32_t* places = lists_data + pairs;
  Tasks(visible).run([&](int64_t, int64_t begin, int64_t end) {
    std::vector<S> total(row_size);
    for (int64_t rank = begin; rank < end; ++rank) {
      std::fill(total.begin(), total.end(), S(0));
      for (int64_t pair = start[rank]; pair < start[rank + 1]; ++pair) {
        if (pair + kPrefetchRows < start[end]) {
          const S* ahead = pair_grads + places[pair + kPrefetchRows] * row_size;
          __builtin_prefetch(ahead);
          __builtin_prefetch(ahead + row_size - 1);
        }
        const S* row = pair_grads + places[pair] * row_size;
        for (int64_t k = 0; k < row_size; ++k) total[k] += row[k];
      }
      const Record<S>& r = lists.record(int32_t(rank));
      const int64_t g = ids[rank];
      // Back from the base-2 exponent: the conic is (-2 a, -b, -2 c) ln 2, and dx = pixel - mean.
      const S ca = S(-2 * kLn2) * r.a, cb = S(-kLn2) * r.b, cc = S(-2 * kLn2) * r.c;
      d_means[2 * g] = ca * total[1] + cb * total[2];
      d_means[2 * g + 1] = cb * total[1] + cc * total[2];
      d_conics[3 * g] = S(-0.5) * total[3];
      d_conics[3 * g + 1] = -total[4];
      d_conics[3 * g + 2] = S(-0.5) * total[5];
      d_opacities[g] = total[0] / std::exp2(r.log_opacity);
      std::copy_n(total.data() + kMoments, c, d_colors + g * c);
      if (d_depths) d_depths[g] = total[kMoments + c];
    }
  });
  for (int64_t tile = 0; tile < grid.count(); ++tile)
    for (int64_t k = 0; k < c; ++k) d_back[k] += background_rows[tile * c + k];
  return out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> composite_backward_cpu(
    const OptTensor& grad_image, const OptTensor& grad_alpha, const OptTensor& grad_depth, const Tensor& image, const Tensor& alpha,
    const Tensor& depth, const Tensor& records, const Tensor& order, const Tensor& pair_start, const Tensor& tile_start, const Tensor& lists,
    int64_t gaussians) {
  check_composed(grad_image, grad_alpha, grad_depth, image, alpha, depth, records, order, pair_start, lists);
  CompositeGrads out;
  on_scalar(image, [&](auto tag) {
    out = composite_vjp<decltype(tag)>(contiguous(grad_image), contiguous(grad_alpha), contiguous(grad_depth), image, alpha, depth, records,
                                       order, pair_start, tile_start, lists, gaussians);
  });
  return {out.means2d, out.conics, out.depths, out.opacities, out.colors, out.background};
}

}  // namespace

TORCH_LIBRARY_IMPL(diff_gaussian_rasterization, CPU, m) {
  m.impl("composite", &composite_cpu);
  m.impl("composite_backward", &composite_backward_cpu);
}

}  // namespace dgr
