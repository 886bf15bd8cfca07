// Absolute gradients of the projected means: pixel by pixel, since a sum of absolute values has no moments.
#pragma once

#include "draw_vjp.h"

namespace dgr {
inline namespace DGR_VARIANT {
namespace {

template <class S> void absolute_tile(const DrawLists<S>& lists, const CanvasGrads<S>& in, int64_t tile) {
  const TileGrid grid(in.window);
  const int64_t features = in.channels + (in.g_depth ? 1 : 0);
  Scratch<S> scratch((3 + features) * kPlane);
  S *t = scratch.data(), *rest = t + kPlane, *grads = rest + kPlane, *alpha_grads = grads + features * kPlane;
  const Region region(grid, tile, lists.squares);
  load_gradients(in, grid, region, t, rest, grads, alpha_grads);
  start_transmittance(region, t);
  const S left = S(grid.left + region.x), top = S(grid.top + region.y);
  const S right = left + S(region.width - 1), bottom = top + S(region.height - 1);
  for (int64_t place = lists.tile_start[tile]; place < lists.tile_start[tile + 1]; ++place) {
    const Record<S>& r = record_at(lists, lists.ranks[place]);
    const S *color = r.features(), ca = S(-2 * kLn2) * r.a, cb = S(-kLn2) * r.b, cc = S(-2 * kLn2) * r.c;
    const Span<S> rows = pixel_rows(r, top, bottom);
    S sum_x = 0, sum_y = 0;
    for (S y = rows.first; y <= rows.last; y += 1) {
      const S dy = y + S(0.5) - r.y;
      const RowTerms<S> terms = row_terms(r.log_opacity, r.b, r.c, dy);
      const Span<S> columns = pixel_columns(r, Span<S>{y, y}, left, right);
      for (S x = columns.first; x <= columns.last; x += 1) {
        const int at = int(y - top) * kTileWidth + int(x - left);
        if (!(t[at] > 0)) continue;
        const S dx = x + S(0.5) - r.x;
        S color_grad = alpha_grads[at], weight;
        for (int64_t f = 0; f < features; ++f) color_grad += grads[f * kPlane + at] * color[f];
        const S v = blend_vjp(opacity_at(exponent(r.a, terms, dx)), color_grad, t[at], rest[at], weight);
        sum_x += magnitude(v * (ca * dx + cb * dy));
        sum_y += magnitude(v * (cb * dx + cc * dy));
      }
    }
    in.pair_grads[2 * place] = sum_x;
    in.pair_grads[2 * place + 1] = sum_y;
  }
}

}  // namespace
}  // namespace DGR_VARIANT
}  // namespace dgr
