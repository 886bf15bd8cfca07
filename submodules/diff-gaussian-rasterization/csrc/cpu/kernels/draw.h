// Driver of common/blend.h: tiles in parallel, a patch of pixels at a time (patches.h).
//
// The patches of a tile (transmittance, channels) stay in cache, and its list is read front to back.
#pragma once

#include "patches.h"

namespace dgr {
inline namespace DGR_VARIANT {
namespace {

// Gaussians whose patches are found together, as the loop over the patches of one would wait for them; after each batch,
// finished patches and tiles are looked for, to skip them.
constexpr int kBatch = 32;
// Number of records that are prefetched.
constexpr int kPrefetch = 16;
// Number of rows of gradients that are prefetched when they are added.
constexpr int kPrefetchRows = 16;

template <class S> DGR_HD const Record<S>& record_at(const DrawLists<S>& lists, int64_t rank) {
  return *reinterpret_cast<const Record<S>*>(lists.records + rank * lists.stride);
}

// Reads the list of a tile: draw(record, covered patches, position) for each Gaussian until the tile is finished.
// `patches`: those of the tile, `stride` scalars apart. Returns the position behind the last Gaussian drawn.
template <class S, class Draw>
DGR_HD int32_t walk(const DrawLists<S>& lists, const Centers<S>& centers, int64_t tile, const S* patches, int stride, const Draw& draw) {
  const int32_t begin = lists.tile_start[tile], end = lists.tile_start[tile + 1];
  uint64_t words[kBatch];
  for (int32_t first = begin; first < end; first += kBatch) {
    const uint64_t live = unfinished(patches, stride);
    if (!live) return first;
    const int32_t last = std::min(end, first + kBatch);
    for (int32_t i = first; i < last; ++i) {
      if (i + kPrefetch < end) {
        const char* ahead = reinterpret_cast<const char*>(&record_at(lists, lists.ranks[i + kPrefetch]));
        for (int64_t byte = 0; byte < lists.stride * int64_t(sizeof(S)); byte += 64) __builtin_prefetch(ahead + byte);
      }
      words[i - first] = covered(record_at(lists, lists.ranks[i]), centers) & live;
    }
    for (int32_t i = first; i < last; ++i) draw(record_at(lists, lists.ranks[i]), words[i - first], i);
  }
  return end;
}

// Channels known when compiling (C > 0) stay in registers; C = 0 reads the number from `runtime`.
template <int C> DGR_HD constexpr int channels(int runtime) { return C > 0 ? C : runtime; }

// A Gaussian at the pixels of a patch: their distances to its mean, and alpha.
template <class S> struct AtPatch {
  Wide<S> dx, dy;
  Opacity<Wide<S>> opacity;

  DGR_HD AtPatch(const Record<S>& r, const Centers<S>& centers, int p)
      : dx(load<Wide<S>>(centers.columns + p % kAcross * kPatch) - Wide<S>(r.x)),
        dy(load<Wide<S>>(centers.rows + p / kAcross * kPatch) - Wide<S>(r.y)),
        opacity(opacity_at(exponent(Wide<S>(r.a), row_terms(Wide<S>(r.log_opacity), Wide<S>(r.b), Wide<S>(r.c), dy), dx))) {}
};

// The planes of a patch: transmittance, then features.
template <class S, int C> void draw_tile(const DrawLists<S>& lists, const Centers<S>& centers, int64_t tile, int runtime, S* patches) {
  using W = Wide<S>;
  const int n = channels<C>(runtime), stride = (1 + n) * kPatch;
  walk(lists, centers, tile, patches, stride, [&](const Record<S>& r, uint64_t covered, int64_t) DGR_LAMBDA {
    const S* features = r.features();
    for (; covered; covered &= covered - 1) {
      const int p = __builtin_ctzll(covered);
      S* patch = patches + p * stride;
      W t = load<W>(patch);
      const W weight = blend(AtPatch<S>(r, centers, p).opacity, t);
      store(t, patch);
      for (int f = 1; f <= n; ++f) store(load<W>(patch + f * kPatch) + weight * W(features[f - 1]), patch + f * kPatch);
    }
  });
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

// The tiles that the box around a footprint meets, inclusive. The footprint meets all of them if they are one row or one
// column, as it touches every side of its box.
template <class S> struct Box {
  int left, right, top, bottom;

  DGR_HD Box(const Record<S>& r, const TileGrid& grid) {
    // From the first pixel whose centre is inside to the last; a margin of kSlackPixels is in the sizes.
    const S x = r.x - S(grid.left) - S(0.5), y = r.y - S(grid.top) - S(0.5);
    left = int(at_most(at_least(x - r.half_width + S(1), S(0)), S(grid.width))) / kTileWidth;
    right = round_to_tile(x + r.half_width, S(grid.width - 1), kTileWidth);
    top = int(at_most(at_least(y - r.half_height + S(1), S(0)), S(grid.height))) / kTileHeight;
    bottom = round_to_tile(y + r.half_height, S(grid.height - 1), kTileHeight);
  }
  DGR_HD bool is_line() const { return (left == right) | (top == bottom); }

 private:
  static DGR_HD int round_to_tile(S last, S most, int side) { return last >= 0 ? int(at_most(last, most)) / side : -1; }
};

template <class S>
void list_tiles(const DrawLists<S>& lists, const Window& window, int64_t begin, int64_t end, std::vector<int32_t>& tiles,
                int32_t* count_of_tile, int32_t* count_of_rank) {
  const TileGrid grid(window);
  const auto list = [&](int64_t row, int64_t first, int64_t last) DGR_LAMBDA {
    for (int64_t column = first; column <= last; ++column) {
      const int32_t tile = int32_t(row * grid.columns + column);
      if (lists.squares && !lists.squares[tile]) continue;
      tiles.push_back(tile);
      ++count_of_tile[tile];
    }
  };
  for (int64_t rank = begin; rank < end; ++rank) {
    const size_t before = tiles.size();
    const Record<S>& r = record_at(lists, rank);
    if (rank + kPrefetchRows < end) __builtin_prefetch(&record_at(lists, rank + kPrefetchRows));
    const Box<S> box(r, grid);
    if (!box.is_line()) visit_tiles(r, grid, list);
    else if (r.half_height >= 0)
      for (int row = box.top; row <= box.bottom; ++row) list(row, box.left, box.right);
    count_of_rank[rank] = int32_t(tiles.size() - before);
  }
}

template <class S> void draw(const DrawLists<S>& lists, const Canvas<S>& out, int64_t tile) {
  const TileGrid grid(out.window);
  const int64_t c = out.channels, features = c + 1, pixels = grid.height * grid.width;
  on_channels(features, [&](auto tag) DGR_LAMBDA {
    constexpr int C = decltype(tag)::value;
    const int stride = int(1 + features) * kPatch;
    Scratch<S> scratch(2 * kPlane + (1 + features) * kTilePixels);
    S *t = scratch.data(), *plane = t + kPlane, *patches = plane + kPlane;
    const Region region(grid, tile, lists.squares);
    start_transmittance(region, t);
    const bool empty = lists.tile_start[tile] == lists.tile_start[tile + 1];
    if (!empty) {
      to_patches(t, patches, stride);
      draw_tile<S, C>(lists, Centers<S>(grid, region), tile, int(features), patches);
      from_patches(patches, stride, t);
    }
    for (int i = 0; i < kTilePixels; ++i) t[i] = std::abs(t[i]);
    for (int64_t k = 0; k < features; ++k) {
      if (empty) std::fill_n(plane, kTilePixels, S(0));
      else from_patches(patches + (1 + k) * kPatch, stride, plane);
      if (k < c)
        for (int i = 0; i < kTilePixels; ++i) plane[i] += out.background[k] * t[i];
      store_plane(plane, grid, region, k < c ? out.image + k * pixels : out.depth);
    }
    for (int i = 0; i < kTilePixels; ++i) t[i] = S(1) - t[i];
    store_plane(t, grid, region, out.alpha);
  });
}

}  // namespace
}  // namespace DGR_VARIANT
}  // namespace dgr
