// Driver of common/blend.h: tiles in parallel, a vector of pixels of one row at a time.
//
// The planes of a tile (transmittance, channels) stay in cache, and its list is read front to back. For each Gaussian
// the exact span of every pixel row becomes a list of vectors ("cells"), which one flat loop processes. Gradients of a
// (tile, Gaussian) pair go to the pair's own row of a buffer, in the order of the tile's list (one stream: scattered
// stores would stall the walk); a second pass gathers and adds the rows of each Gaussian in order. So nothing is
// shared, and results have the same bits for any number of threads.
#pragma once

#include "../../common/blend.h"
#include "../kernels.h"
#include "simd.h"
#include "standard.h"
#include "tiles.h"

namespace dgr {
inline namespace DGR_VARIANT {
namespace {

// From one plane of a tile to the next: not a power of two, or the planes would share their cache sets.
constexpr int kPlane = kTilePixels + 16;
// Cells that go through the formulas together.
constexpr int kStep = 4;
constexpr int kCellsPerRow = kTileWidth / kLanes;
constexpr int kLaneBits = 3;
// Cells start at multiples of this. Whole vectors would take a tenth more cells, single pixels more split cache lines.
constexpr int kCellAlign = 4;
static_assert(1 << kLaneBits == kLanes && kTileHeight + kLanes <= 64 && kTileWidth % kLanes == 0);
// Number of Gaussians after which finished rows and tiles are looked for, to skip them.
constexpr int kLivenessStride = 16;
// Number of records that are prefetched.
constexpr int kPrefetch = 4;
// Number of rows of gradients that are prefetched when they are added.
constexpr int kPrefetchRows = 16;

using Ints = NativeOf<float, kLanes>::Bits;
constexpr Ints kLane = {0, 1, 2, 3, 4, 5, 6, 7};
template <class S> DGR_HD Ints ints(V<S> a) { return __builtin_convertvector(a.v, Ints); }
template <class S> DGR_HD Ints ints(Mask<S, kLanes> a) { return __builtin_convertvector(a.m, Ints); }

struct Region {
  int64_t x, y;       // of the tile in the window
  int width, height;  // of the tile inside the window
  int squares;        // that are drawn, a bit each

  Region(const TileGrid& grid, int64_t tile, const uint8_t* squares_of_tile)
      : x(tile % grid.columns * kTileWidth),
        y(tile / grid.columns * kTileHeight),
        width(int(std::min<int64_t>(kTileWidth, grid.width - x))),
        height(int(std::min<int64_t>(kTileHeight, grid.height - y))),
        squares(squares_of_tile ? squares_of_tile[tile] : kAllSquares) {}
};

// Where a tile lies in the image: its corner, and the centres of its pixels. They are exact, so that what is computed
// at a pixel does not depend on the window. A group of rows may start anywhere in the tile.
template <class S> struct Centers {
  S left, top;
  alignas(64) S columns[kTileWidth], rows[kTileHeight + kLanes];

  Centers(const TileGrid& grid, const Region& region) : left(S(grid.left + region.x)), top(S(grid.top + region.y)) {
    for (int i = 0; i < kTileWidth; ++i) columns[i] = left + (S(i) + S(0.5));
    for (int i = 0; i < kTileHeight + kLanes; ++i) rows[i] = top + (S(i) + S(0.5));
  }
};

// What a Gaussian covers of a tile: the cells (offsets of vectors in the tile's planes), row by row, and its terms in
// every row that has one. Sized for the full tile and for what `pack` may write past it; the terms of
// cells in the padding are finite.
template <class S> struct Cover {
  Centers<S> centers;
  int count;
  uint32_t cells[kTileHeight * kCellsPerRow + kLanes];
  S dy[kTileHeight + kLanes] = {}, linear[kTileHeight + kLanes] = {}, constant[kTileHeight + kLanes] = {};
};

// Bit r of `live`: row r has unfinished pixels.
template <class S> DGR_HD void cover(const Record<S>& r, uint64_t live, Cover<S>& out) {
  const Centers<S>& centers = out.centers;
  out.count = 0;
  // The centre of the footprint from the corner of the tile. Rounded, unlike dy: only which cells to try depends on it.
  const S x = r.x - centers.left, y = r.y - centers.top;
  const S top = std::max(y - r.half_height, S(0)), bottom = std::min(y + r.half_height, S(kTileHeight));
  if (!(top < bottom)) return;
  const int last_row = std::min(int(bottom), kTileHeight - 1);
  uint32_t* next = out.cells;
  for (int base = int(top); base <= last_row; base += kLanes) {
    const V<S> dy = V<S>::load(centers.rows + base) - V<S>(r.y);
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
  // Filled up to whole steps with cells in the padding behind the planes, where every pixel is finished.
  for (int i = 0; i < kStep - 1; ++i) next[i] = kTilePixels;
}

// Pixels outside the window, in squares that are not drawn, and on the pad of the plane count as finished.
template <class S> void start_transmittance(const Region& region, S* t) {
  for (int row = 0; row < kTileHeight; ++row)
    for (int column = 0; column < kTileWidth; ++column)
      t[row * kTileWidth + column] = row < region.height && column < region.width ? S(1) : S(-1);
  for (int square = 0; square < kSquaresAcross * kSquaresDown; ++square) {
    if (region.squares >> square & 1) continue;
    S* corner = t + square / kSquaresAcross * kSquare * kTileWidth + square % kSquaresAcross * kSquare;
    for (int row = 0; row < kSquare; ++row) std::fill_n(corner + row * kTileWidth, kSquare, S(-1));
  }
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

template <class S> DGR_HD const Record<S>& record_at(const DrawLists<S>& lists, int64_t rank) {
  return *reinterpret_cast<const Record<S>*>(lists.records + rank * lists.stride);
}

// Reads the list of a tile: draw(record, cover, position) for each Gaussian until the tile is finished.
// Returns the position behind the last Gaussian drawn.
template <class S, class Draw>
DGR_HD int32_t walk(const DrawLists<S>& lists, const Centers<S>& centers, int64_t tile, const S* t, const Draw& draw) {
  Cover<S> covered{centers};
  const int32_t begin = lists.tile_start[tile], end = lists.tile_start[tile + 1];
  uint64_t live = 0;
  for (int32_t i = begin; i < end; ++i) {
    if ((i - begin) % kLivenessStride == 0 && !(live = live_rows(t))) return i;
    if (i + kPrefetch < end) {
      const char* ahead = reinterpret_cast<const char*>(&record_at(lists, lists.ranks[i + kPrefetch]));
      for (int64_t byte = 0; byte < lists.stride * int64_t(sizeof(S)); byte += 64) __builtin_prefetch(ahead + byte);
    }
    const Record<S>& record = record_at(lists, lists.ranks[i]);
    cover(record, live, covered);
    draw(record, covered, i);
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
template <class S> DGR_HD Cells<S> of_columns(const S* table, const uint32_t* at) {
  Cells<S> r;
  for (int i = 0; i < kStep; ++i) r.v[i] = V<S>::load(table + at[i] % kTileWidth);
  return r;
}

template <class S, int C>
void draw_tile(const DrawLists<S>& lists, const Centers<S>& centers, int64_t tile, int runtime, S* t, S* planes) {
  walk(lists, centers, tile, t, [=](const Record<S>& r, const Cover<S>& cover, int64_t) DGR_LAMBDA {
    const int n = channels<C>(runtime);
    const S* features = r.features();
    const Cells<S> a{V<S>(r.a)}, x{V<S>(r.x)};
    for (int k = 0; k < cover.count; k += kStep) {
      const uint32_t* at = cover.cells + k;
      const Cells<S> dx = of_columns(cover.centers.columns, at) - x;
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

// A: there is a gradient of alpha.
template <class S, int C, bool A>
void draw_tile_vjp(const DrawLists<S>& lists, const Centers<S>& centers, int64_t tile, int runtime, S* t, S* rest, const S* grads,
                   V<S>* runtime_sums, S* pair_grads) {
  const int32_t drawn = walk(lists, centers, tile, t, [=](const Record<S>& r, const Cover<S>& cover, int64_t position) DGR_LAMBDA {
    const int n = channels<C>(runtime);
    const S *alpha_grads = grads + n * kPlane, *features = r.features();
    const V<S> zero(S(0));
    const Cells<S> a{V<S>(r.a)}, x{V<S>(r.x)};
    V<S> local[C > 0 ? pair_row(C) : 1];
    V<S>* sums = C > 0 ? local : runtime_sums;
    for (int i = 0; i < pair_row(n); ++i) sums[i] = zero;
    for (int k = 0; k < cover.count; k += kStep) {
      const uint32_t* at = cover.cells + k;
      const Cells<S> dx = of_columns(cover.centers.columns, at) - x;
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

// Copies between a tile's plane and its place in the window's images; whole rows at a size that the compiler knows.
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

// Calls f with the number of channels as a compile-time constant where that is faster.
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

template <class S> void write_records(const Splats<S>& in, int64_t begin, int64_t end, S* records, int64_t stride) {
  const int64_t c = in.channels, features = c + 1;
  for (int64_t rank = begin; rank < end; ++rank) {
    if (rank + kPrefetchRows < end) {
      const int64_t ahead = in.ids[rank + kPrefetchRows];
      __builtin_prefetch(in.means2d + 2 * ahead);
      __builtin_prefetch(in.conics + 3 * ahead);
      __builtin_prefetch(in.colors + c * ahead);
      __builtin_prefetch(in.opacities + ahead);
    }
    const int64_t g = in.ids[rank];
    Record<S>& r = *reinterpret_cast<Record<S>*>(records + rank * stride);
    make_record(in.means2d + 2 * g, in.conics + 3 * g, in.opacities[g], r);
    S product = 0;  // NaN if any feature is NaN or Inf
    for (int64_t k = 0; k < c; ++k) product += (r.features()[k] = in.colors[g * c + k]) * S(0);
    r.features()[c] = in.depths[g];
    if (!(product + in.depths[g] * S(0) == 0)) make_empty(r);
    std::fill(r.features() + features, records + (rank + 1) * stride, S(0));
  }
}

template <class S>
void list_tiles(const DrawLists<S>& lists, const Window& window, int64_t begin, int64_t end, std::vector<int32_t>& tiles,
                int32_t* count_of_tile, int32_t* count_of_rank) {
  const TileGrid grid(window);
  for (int64_t rank = begin; rank < end; ++rank) {
    const size_t before = tiles.size();
    visit_tiles(record_at(lists, rank), grid, [&](int64_t row, int64_t first, int64_t last) DGR_LAMBDA {
      for (int64_t column = first; column <= last; ++column) {
        const int32_t tile = int32_t(row * grid.columns + column);
        if (lists.squares && !lists.squares[tile]) continue;
        tiles.push_back(tile);
        ++count_of_tile[tile];
      }
    });
    count_of_rank[rank] = int32_t(tiles.size() - before);
  }
}

template <class S> void draw(const DrawLists<S>& lists, const Canvas<S>& out, int64_t tile) {
  const TileGrid grid(out.window);
  const int64_t c = out.channels, features = c + 1, pixels = grid.height * grid.width;
  on_channels(features, [&](auto tag) DGR_LAMBDA {
    constexpr int C = decltype(tag)::value;
    Scratch<S> scratch((1 + features) * kPlane);
    S *t = scratch.data(), *planes = t + kPlane;
    const Region region(grid, tile, lists.squares);
    start_transmittance(region, t);
    draw_tile<S, C>(lists, Centers<S>(grid, region), tile, int(features), t, planes);
    for (int i = 0; i < kTilePixels; ++i) t[i] = std::abs(t[i]);
    for (int64_t k = 0; k < c; ++k) {
      S* plane = planes + k * kPlane;
      for (int i = 0; i < kTilePixels; ++i) plane[i] += out.background[k] * t[i];
      store_plane(plane, grid, region, out.image + k * pixels);
    }
    store_plane(planes + c * kPlane, grid, region, out.depth);
    for (int i = 0; i < kTilePixels; ++i) t[i] = S(1) - t[i];
    store_plane(t, grid, region, out.alpha);
  });
}

// A tile's planes of gradients, and in `rest` <gradient, pixel>: what is still to come, in front of the first Gaussian.
// `value`: a plane that is not yet in use. Planes without a gradient are left as they are.
template <class S>
void load_gradients(const CanvasGrads<S>& in, const TileGrid& grid, const Region& region, S* value, S* rest, S* grads, S* alpha_grads) {
  const int64_t c = in.channels, pixels = grid.height * grid.width;
  const auto take = [&](const S* gradient, const S* image, S* plane) DGR_LAMBDA {
    load_plane(gradient, grid, region, plane);
    load_plane(image, grid, region, value);
    for (int i = 0; i < kTilePixels; ++i) rest[i] += plane[i] * value[i];
  };
  if (in.g_image)
    for (int64_t k = 0; k < c; ++k) take(in.g_image + k * pixels, in.image + k * pixels, grads + k * kPlane);
  if (in.g_depth) take(in.g_depth, in.depth, grads + c * kPlane);
  if (in.g_alpha) take(in.g_alpha, in.alpha, alpha_grads);
}

template <class S> void draw_vjp(const DrawLists<S>& lists, const CanvasGrads<S>& in, int64_t tile) {
  const TileGrid grid(in.window);
  // Depth is the last feature: without a gradient it is left off the end.
  const int64_t c = in.channels, features = c + (in.g_depth ? 1 : 0), row_size = pair_row(int(features));
  on_channels(features, [&](auto tag) DGR_LAMBDA {
    constexpr int C = decltype(tag)::value;
    Scratch<S> scratch((3 + features) * kPlane + row_size * kLanes);
    S *t = scratch.data(), *rest = t + kPlane, *grads = rest + kPlane, *alpha_grads = grads + features * kPlane;
    V<S>* sums = reinterpret_cast<V<S>*>(alpha_grads + kPlane);
    const Region region(grid, tile, lists.squares);
    load_gradients(in, grid, region, t, rest, grads, alpha_grads);
    load_plane(in.alpha, grid, region, t);
    for (int64_t k = 0; k < c; ++k) {
      S total = 0;
      for (int i = 0; i < kTilePixels; ++i) total += grads[k * kPlane + i] * (S(1) - t[i]);
      in.background[tile * c + k] = total;
    }
    start_transmittance(region, t);
    (in.g_alpha ? draw_tile_vjp<S, C, true> : draw_tile_vjp<S, C, false>)(lists, Centers<S>(grid, region), tile, int(features), t, rest, grads, sums,
                                                                           in.pair_grads);
  });
}

template <class S> void sum_pairs(const DrawLists<S>& lists, const PairSums<S>& in, int64_t begin, int64_t end) {
  const int64_t c = in.channels, row_size = pair_row(int(c + (in.depths ? 1 : 0)));
  std::vector<S> total(row_size);
  for (int64_t rank = begin; rank < end; ++rank) {
    std::fill(total.begin(), total.end(), S(0));
    for (int64_t pair = in.pair_start[rank]; pair < in.pair_start[rank + 1]; ++pair) {
      if (pair + kPrefetchRows < in.pair_start[end]) {
        const S* ahead = in.pair_grads + in.places[pair + kPrefetchRows] * row_size;
        __builtin_prefetch(ahead);
        __builtin_prefetch(ahead + row_size - 1);
      }
      const S* row = in.pair_grads + in.places[pair] * row_size;
      for (int64_t k = 0; k < row_size; ++k) total[k] += row[k];
    }
    const Record<S>& r = record_at(lists, rank);
    const int64_t g = in.ids[rank];
    // Back from the base-2 exponent: the conic is (-2 a, -b, -2 c) ln 2, and dx = pixel - mean.
    const S ca = S(-2 * kLn2) * r.a, cb = S(-kLn2) * r.b, cc = S(-2 * kLn2) * r.c;
    in.means2d[2 * g] = ca * total[1] + cb * total[2];
    in.means2d[2 * g + 1] = cb * total[1] + cc * total[2];
    in.conics[3 * g] = S(-0.5) * total[3];
    in.conics[3 * g + 1] = -total[4];
    in.conics[3 * g + 2] = S(-0.5) * total[5];
    in.opacities[g] = total[0] / std::exp2(r.log_opacity);
    std::copy_n(total.data() + kMoments, c, in.colors + g * c);
    if (in.depths) in.depths[g] = total[kMoments + c];
  }
}

}  // namespace
}  // namespace DGR_VARIANT
}  // namespace dgr
