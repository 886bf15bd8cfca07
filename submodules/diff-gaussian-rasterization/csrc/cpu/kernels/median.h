// The Gaussian at which half of a pixel's light is gone: pixel by pixel, since most pixels are finished early.
#pragma once

#include "draw.h"

namespace dgr {
inline namespace DGR_VARIANT {
namespace {

template <class S> void median_tile(const DrawLists<S>& lists, const Medians& out, int64_t tile) {
  const TileGrid grid(out.window);
  const Region region(grid, tile, lists.squares);
  Scratch<S> scratch(kPlane);
  S* t = scratch.data();
  start_transmittance(region, t);
  const S left = S(grid.left + region.x), top = S(grid.top + region.y);
  const S right = left + S(region.width - 1), bottom = top + S(region.height - 1);
  int open = 0;  // pixels that have more than half of their light
  for (int i = 0; i < kTilePixels; ++i) open += t[i] > 0;
  for (int64_t place = lists.tile_start[tile]; open && place < lists.tile_start[tile + 1]; ++place) {
    const int32_t rank = lists.ranks[place];
    const Record<S>& r = record_at(lists, rank);
    const Span<S> rows = pixel_rows(r, top, bottom);
    for (S y = rows.first; y <= rows.last; y += 1) {
      const RowTerms<S> terms = row_terms(r.log_opacity, r.b, r.c, y + S(0.5) - r.y);
      const Span<S> columns = pixel_columns(r, Span<S>{y, y}, left, right);
      for (S x = columns.first; x <= columns.last; x += 1) {
        const int row = int(y - top), column = int(x - left), at = row * kTileWidth + column;
        if (!(t[at] > 0)) continue;
        blend(opacity_at(exponent(r.a, terms, x + S(0.5) - r.x)), t[at]);
        if (t[at] > S(kMedian)) continue;
        out.median[(region.y + row) * grid.width + region.x + column] = out.ids[rank];
        t[at] = S(-1);
        --open;
      }
    }
  }
}

}  // namespace
}  // namespace DGR_VARIANT
}  // namespace dgr
