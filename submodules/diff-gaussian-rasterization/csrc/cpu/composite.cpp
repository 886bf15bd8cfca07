// Driver of common/blend.h: tiles in parallel, a vector of pixels of one row at a time.
//
// A tile keeps its planes (transmittance, channels) in cache and walks its list front to back. For each Gaussian the
// exact span of every pixel row becomes a list of vectors ("cells") to touch; one flat loop visits them.
// Gradients of a (tile, Gaussian) pair go to the pair's own row of a buffer; a second pass adds the rows of each
// Gaussian in order. So nothing is shared, and results have the same bits for any number of threads.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <optional>
#include <tuple>
#include <vector>

#include "../common/blend.h"
#include "args.h"
#include "bin.h"
#include "parallel.h"
#include "simd.h"

namespace dgr {
namespace {

using at::Tensor;
using OptTensor = std::optional<Tensor>;

template <class S> using V = Vec<S, kLanes>;

constexpr int kCellsPerRow = kTileWidth / kLanes;
// A tile that is finished is noticed, and finished rows are skipped, every so many Gaussians.
constexpr int kLivenessStride = 16;
// How far ahead of the list records are fetched.
constexpr int kPrefetch = 4;
// Moments of a pair: sums over its pixels of v, v dx, v dy, v dx dx, v dx dy, v dy dy, with v the gradient of e.
constexpr int kMoments = 6;

// Centres of pixels from the corner of the tile.
template <class S> struct Centers {
  alignas(64) S at[std::max(kTileWidth, kTileHeight)];
  constexpr Centers() : at() {
    for (int i = 0; i < std::max(kTileWidth, kTileHeight); ++i) at[i] = S(i) + S(0.5);
  }
};
template <class S> constexpr Centers<S> kCenters{};

// The cells (offsets of vectors in the tile's planes) that a footprint covers, row by row. `x`, `y`: its centre from
// the corner of the tile; bit r of `live`: row r has unfinished pixels.
template <class S> int cover(const Record<S>& r, S x, S y, uint64_t live, int32_t* cells) {
  using B = typename V<S>::NativeBits;
  const S top = std::max(y - r.half_height, S(0)), bottom = std::min(y + r.half_height, S(kTileHeight));
  if (!(top < bottom)) return 0;
  const int first_row = int(top), last_row = std::min(int(bottom), kTileHeight - 1);
  int32_t* out = cells;
  for (int base = first_row & ~(kLanes - 1); base <= last_row; base += kLanes) {
    const V<S> dy = V<S>::load(kCenters<S>.at + base) - V<S>(y);
    const V<S> square = V<S>(r.width2) - V<S>(r.bend) * dy * dy;
    const V<S> half = root(at_least(square, V<S>(S(0)))) + V<S>(S(kSlackPixels));
    const V<S> middle = V<S>(x - S(0.5)) + V<S>(r.slope) * dy;
    const V<S> left = at_most(at_least(middle - half, V<S>(S(0))), V<S>(S(kTileWidth)));
    const V<S> right = at_most(at_least(middle + half, V<S>(S(-1))), V<S>(S(kTileWidth - 1)));
    // ceil(left) for left >= 0 and floor(right) for right >= -1, up to the slack.
    const B first = truncated(left + V<S>(S(0.999))), last = truncated(right + V<S>(S(1))) - 1;
    const B cell = first & ~(kLanes - 1);
    const B count = ((last - cell + kLanes) / kLanes) & (last >= first) & (B)(square.v > -(S(kSlackPixels) * r.width2));
    for (int lane = 0; lane < kLanes; ++lane) {
      const int row = base + lane;
      const int32_t at = row * kTileWidth + int32_t(cell[lane]);
      for (int k = 0; k < kCellsPerRow; ++k) out[k] = at + k * kLanes;
      out += int32_t(count[lane]) & -int32_t((live >> row) & 1);
    }
  }
  return int(out - cells);
}

// Cells of a full tile, and what the last row may write past its own.
constexpr int kCellBuffer = kTileHeight * kCellsPerRow + kCellsPerRow;

struct Region {
  int64_t x, y;
  int width, height;  // of the tile inside the picture

  Region(const TileGrid& grid, int64_t tile)
      : x(tile % grid.columns * kTileWidth),
        y(tile / grid.columns * kTileHeight),
        width(int(std::min<int64_t>(kTileWidth, grid.width - x))),
        height(int(std::min<int64_t>(kTileHeight, grid.height - y))) {}
};

// Pixels outside the picture count as finished.
template <class S> void start_transmittance(const Region& region, S* t) {
  for (int row = 0; row < kTileHeight; ++row)
    for (int column = 0; column < kTileWidth; ++column)
      t[row * kTileWidth + column] = row < region.height && column < region.width ? S(1) : S(-1);
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
  const int32_t *tile_start, *ranks, *pairs;

  const Record<S>& record(int32_t rank) const { return *reinterpret_cast<const Record<S>*>(records + rank * stride); }
};

// Walks the list of a tile: draw(record, x, y, cells, count, position) for each Gaussian until the tile is finished.
// Returns the position behind the last Gaussian drawn.
template <class S, class Draw> int32_t walk(const Lists<S>& lists, const Region& region, int64_t tile, const S* t, const Draw& draw) {
  int32_t cells[kCellBuffer];
  const int32_t begin = lists.tile_start[tile], end = lists.tile_start[tile + 1];
  uint64_t live = ~uint64_t(0);
  for (int32_t i = begin; i < end; ++i) {
    if ((i - begin) % kLivenessStride == 0 && !(live = live_rows(t))) return i;
    if (i + kPrefetch < end) {
      const char* ahead = reinterpret_cast<const char*>(&lists.record(lists.ranks[i + kPrefetch]));
      for (int64_t byte = 0; byte < lists.stride * int64_t(sizeof(S)); byte += 64) __builtin_prefetch(ahead + byte);
    }
    const Record<S>& record = lists.record(lists.ranks[i]);
    const S x = record.x - S(region.x), y = record.y - S(region.y);
    draw(record, x, y, cells, cover(record, x, y, live, cells), i);
  }
  return end;
}

// Channels known when compiling (C > 0) stay in registers; C = 0 reads the number from `runtime`.
template <int C> constexpr int channels(int runtime) { return C > 0 ? C : runtime; }

template <class S, int C>
void draw_tile(const Lists<S>& lists, const Region& region, int64_t tile, int runtime, S* t, S* planes) {
  const int n = channels<C>(runtime);
  walk(lists, region, tile, t, [&](const Record<S>& r, S x, S y, const int32_t* cells, int count, int32_t) {
    const S* features = r.features();
    const V<S> a(r.a), b(r.b), c(r.c), log_opacity(r.log_opacity), vx(x), vy(y);
    for (int k = 0; k < count; ++k) {
      const int at = cells[k];
      const V<S> dx = V<S>::load(kCenters<S>.at + at % kTileWidth) - vx, dy = V<S>(kCenters<S>.at[at / kTileWidth]) - vy;
      V<S> raw, trans = V<S>::load(t + at);
      const V<S> alpha = alpha_of(exponent(log_opacity, a, b, c, dx, dy), raw);
      const V<S> weight = blend(alpha, trans);
      trans.store(t + at);
      for (int f = 0; f < n; ++f) {
        S* plane = planes + f * kTilePixels + at;
        (V<S>::load(plane) + weight * V<S>(features[f])).store(plane);
      }
    }
  });
}

template <class S, int C>
void draw_tile_vjp(const Lists<S>& lists, const Region& region, int64_t tile, int runtime, bool with_alpha, S* t, S* rest, const S* grads,
                   V<S>* feature_sums, S* pair_grads, int64_t row_size) {
  const int n = channels<C>(runtime);
  const S* alpha_grads = grads + n * kTilePixels;
  const int32_t drawn = walk(lists, region, tile, t, [&](const Record<S>& r, S x, S y, const int32_t* cells, int count, int32_t position) {
    const S* features = r.features();
    const V<S> a(r.a), b(r.b), c(r.c), log_opacity(r.log_opacity), vx(x), vy(y), zero(S(0));
    V<S> s0 = zero, sx = zero, sy = zero, sxx = zero, sxy = zero, syy = zero;
    V<S> local[C > 0 ? C : 1];
    V<S>* sums = C > 0 ? local : feature_sums;
    for (int f = 0; f < n; ++f) sums[f] = zero;
    for (int k = 0; k < count; ++k) {
      const int at = cells[k];
      const V<S> dx = V<S>::load(kCenters<S>.at + at % kTileWidth) - vx, dy = V<S>(kCenters<S>.at[at / kTileWidth]) - vy;
      V<S> raw, weight, trans = V<S>::load(t + at), left = V<S>::load(rest + at);
      const V<S> alpha = alpha_of(exponent(log_opacity, a, b, c, dx, dy), raw);
      V<S> color_grad = with_alpha ? V<S>::load(alpha_grads + at) : zero;
      for (int f = 0; f < n; ++f) color_grad = color_grad + V<S>::load(grads + f * kTilePixels + at) * V<S>(features[f]);
      const V<S> v = blend_vjp(alpha, raw, color_grad, trans, left, weight);
      trans.store(t + at);
      left.store(rest + at);
      for (int f = 0; f < n; ++f) sums[f] = sums[f] + weight * V<S>::load(grads + f * kTilePixels + at);
      const V<S> vdx = v * dx, vdy = v * dy;
      s0 = s0 + v;
      sx = sx + vdx;
      sy = sy + vdy;
      sxx = sxx + vdx * dx;
      sxy = sxy + vdx * dy;
      syy = syy + vdy * dy;
    }
    S* out = pair_grads + lists.pairs[position] * row_size;
    out[0] = sum(s0), out[1] = sum(sx), out[2] = sum(sy), out[3] = sum(sxx), out[4] = sum(sxy), out[5] = sum(syy);
    for (int f = 0; f < n; ++f) out[kMoments + f] = sum(sums[f]);
  });
  for (int32_t i = drawn; i < lists.tile_start[tile + 1]; ++i) std::fill_n(pair_grads + lists.pairs[i] * row_size, row_size, S(0));
}

// Copies between a tile's plane and its place in a picture.
template <class S> void load_plane(const S* picture, const TileGrid& grid, const Region& region, S* plane) {
  for (int row = 0; row < kTileHeight; ++row) {
    const int width = row < region.height ? region.width : 0;
    std::copy_n(picture + (region.y + row) * grid.width + region.x, width, plane + row * kTileWidth);
    std::fill(plane + row * kTileWidth + width, plane + (row + 1) * kTileWidth, S(0));
  }
}

template <class S> void store_plane(const S* plane, const TileGrid& grid, const Region& region, S* picture) {
  for (int row = 0; row < region.height; ++row)
    std::copy_n(plane + row * kTileWidth, region.width, picture + (region.y + row) * grid.width + region.x);
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

  std::vector<int32_t> ids = compact(means2d.size(0), [&](int64_t g) {
    // A sum with a NaN or an Inf in it differs from itself.
    S all = 0;
    for (int64_t k = 0; k < c; ++k) all += color[g * c + k] * S(0);
    Record<S> r;
    return radius[g] > 0 && all == 0 && depth[g] > 0 && make_record(mean + 2 * g, conic + 3 * g, opacity[g], r);
  });
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
      const int64_t g = ids[rank];
      Record<S>& r = *reinterpret_cast<Record<S>*>(records + rank * stride);
      make_record(mean + 2 * g, conic + 3 * g, opacity[g], r);
      std::copy_n(color + g * c, c, r.features());
      r.features()[c] = depth[g];
      std::fill(r.features() + features, records + (rank + 1) * stride, S(0));
    }
  });

  Lists<S> lists{records, stride, nullptr, nullptr, nullptr};
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
  lists.pairs = ranks + counts.pairs;

  out.image = at::empty({c, height, width}, means2d.options());
  out.alpha = at::empty({height, width}, means2d.options());
  out.depth = at::empty({height, width}, means2d.options());
  S *image = out.image.data_ptr<S>(), *alpha_image = out.alpha.data_ptr<S>(), *depth_image = out.depth.data_ptr<S>();
  const S* back = background.const_data_ptr<S>();
  on_channels(features, [&](auto tag) {
    constexpr int C = decltype(tag)::value;
    parallel_items(grid.count(), [&](int64_t tile) {
      Scratch<S> scratch((1 + features) * kTilePixels);
      S *t = scratch.data(), *planes = t + kTilePixels;
      const Region region(grid, tile);
      start_transmittance(region, t);
      draw_tile<S, C>(lists, region, tile, int(features), t, planes);
      for (int i = 0; i < kTilePixels; ++i) t[i] = std::abs(t[i]);
      for (int64_t k = 0; k < c; ++k) {
        S* plane = planes + k * kTilePixels;
        for (int i = 0; i < kTilePixels; ++i) plane[i] += back[k] * t[i];
        store_plane(plane, grid, region, image + k * height * width);
      }
      store_plane(planes + c * kTilePixels, grid, region, depth_image);
      for (int i = 0; i < kTilePixels; ++i) t[i] = S(1) - t[i];
      store_plane(t, grid, region, alpha_image);
    });
  });
  return out;
}

void check_composite(const Tensor& means2d, const Tensor& conics, const Tensor& depths, const Tensor& radii, const Tensor& opacities,
                     const Tensor& colors, const Tensor& background, int64_t width, int64_t height) {
  TORCH_CHECK(means2d.dim() == 2 && means2d.size(1) == 2, "rasterize: means2d has shape ", means2d.sizes(), ", expected [G, 2]");
  const int64_t n = means2d.size(0);
  check_rows(conics, "conics", n, 3, means2d);
  check_rows(opacities, "opacities", n, 1, means2d);
  TORCH_CHECK(colors.dim() == 2 && colors.size(1) > 0, "rasterize: colors has shape ", colors.sizes(), ", expected [G, C]");
  check_rows(colors, "colors", n, colors.size(1), means2d);
  TORCH_CHECK(depths.numel() == n && radii.numel() == n && radii.scalar_type() == at::kInt && depths.scalar_type() == means2d.scalar_type(),
              "rasterize: depths and radii (int32) need one entry for each of ", n, " Gaussians");
  TORCH_CHECK(background.dim() == 1 && background.size(0) == colors.size(1) && background.scalar_type() == means2d.scalar_type(),
              "rasterize: background has shape ", background.sizes(), ", expected [", colors.size(1), "] as colors has channels");
  TORCH_CHECK(width > 0 && height > 0 && width <= (1 << 20) && height <= (1 << 20), "rasterize: picture of ", width, "x", height, " pixels");
  TORCH_CHECK(n <= std::numeric_limits<int32_t>::max(), "rasterize: ", n, " Gaussians, at most 2^31 - 1");
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
  const int64_t features = c + (grad_depth ? 1 : 0), row_size = kMoments + features;
  const int64_t visible = order.size(0), pairs = pair_lists.size(1);
  const int32_t* lists_data = pair_lists.const_data_ptr<int32_t>();
  const Lists<S> lists{record_rows.const_data_ptr<S>(), stride, tile_start.const_data_ptr<int32_t>(), lists_data, lists_data + pairs};
  const S *pictures[3] = {image.const_data_ptr<S>(), alpha.const_data_ptr<S>(), depth.const_data_ptr<S>()};
  const S* g_image = grad_image ? grad_image->const_data_ptr<S>() : nullptr;
  const S* g_alpha = grad_alpha ? grad_alpha->const_data_ptr<S>() : nullptr;
  const S* g_depth = grad_depth ? grad_depth->const_data_ptr<S>() : nullptr;

  Tensor pair_rows = at::empty({pairs, row_size}, image.options());
  S* pair_grads = pair_rows.data_ptr<S>();
  std::vector<S> background_rows(grid.count() * c, S(0));
  on_channels(features, [&](auto tag) {
    constexpr int C = decltype(tag)::value;
    parallel_items(grid.count(), [&](int64_t tile) {
      Scratch<S> scratch((2 + features + 1) * kTilePixels + (features + 1) * kLanes);
      S *t = scratch.data(), *rest = t + kTilePixels, *grads = rest + kTilePixels, *alpha_grads = grads + features * kTilePixels;
      V<S>* sums = reinterpret_cast<V<S>*>(alpha_grads + kTilePixels);
      const Region region(grid, tile);
      // <gradient, pixel>: what is still to come, in front of the first Gaussian.
      const auto take = [&](const S* gradient, const S* picture, S* plane) {
        S* value = t;  // not yet in use
        load_plane(gradient, grid, region, plane);
        load_plane(picture, grid, region, value);
        for (int i = 0; i < kTilePixels; ++i) rest[i] += plane[i] * value[i];
      };
      if (g_image)
        for (int64_t k = 0; k < c; ++k) take(g_image + k * pixels, pictures[0] + k * pixels, grads + k * kTilePixels);
      if (g_depth) take(g_depth, pictures[2], grads + c * kTilePixels);
      if (g_alpha) take(g_alpha, pictures[1], alpha_grads);
      load_plane(pictures[1], grid, region, t);
      for (int64_t k = 0; k < c; ++k) {
        S total = 0;
        for (int i = 0; i < kTilePixels; ++i) total += grads[k * kTilePixels + i] * (S(1) - t[i]);
        background_rows[tile * c + k] = total;
      }
      start_transmittance(region, t);
      draw_tile_vjp<S, C>(lists, region, tile, int(features), g_alpha != nullptr, t, rest, grads, sums, pair_grads, row_size);
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
  Tasks(visible).run([&](int64_t, int64_t begin, int64_t end) {
    std::vector<S> total(row_size);
    for (int64_t rank = begin; rank < end; ++rank) {
      std::fill(total.begin(), total.end(), S(0));
      for (int64_t pair = start[rank]; pair < start[rank + 1]; ++pair)
        for (int64_t k = 0; k < row_size; ++k) total[k] += pair_grads[pair * row_size + k];
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
