// Tiles, the records that tile kernels read, and which tiles and pixels a Gaussian covers.
#pragma once

#include <cstdint>
#include <limits>

#include "constants.h"
#include "scalar.h"
#include "window.h"

namespace dgr {
inline namespace DGR_VARIANT {

// A window cut into tiles of W x H pixels, from its corner; each driver has its own size.
template <int W, int H> struct Tiling {
  static constexpr int kTileWidth = W, kTileHeight = H;
  int64_t left, top, width, height, columns, rows;

  explicit Tiling(const Window& w)
      : left(w.x), top(w.y), width(w.width), height(w.height), columns((width + W - 1) / W), rows((height + H - 1) / H) {}
  DGR_HD int64_t count() const { return columns * rows; }
};

// One visible Gaussian, ready to be drawn; its features (colors, then depth) follow in memory.
// Positions are those of the image, whatever the window: a pixel's distance to the mean is then rounded once, and has
// the same bits in every window.
// The footprint is the ellipse alpha >= 1/255. At height dy from its centre it covers
// x + slope dy +- sqrt(width2 - bend dy^2), for |dy| <= half_height; in all rows together, x +- half_width.
// Aligned so that four scalars load at once: rows of records are whole multiples of 16 bytes.
template <class S> struct alignas(16) Record {
  S x, y;
  S a, b, c, log_opacity;  // of the exponent, see blend.h
  S slope, width2, bend, half_height;
  S peak;  // dy at which the footprint reaches farthest to the right; -peak: to the left
  S half_width;

  DGR_HD const S* features() const { return reinterpret_cast<const S*>(this + 1); }
  DGR_HD S* features() { return reinterpret_cast<S*>(this + 1); }
};

template <class S> constexpr int kHeader = sizeof(Record<S>) / sizeof(S);

// Relative and absolute margin (px) of the footprint, larger than the rounding errors of its formulas. A larger margin
// only costs time, since every pixel is tested again.
constexpr double kSlack = 1e-5;
constexpr double kSlackPixels = 0.01;

// Nothing of it is drawn: its footprint has no rows.
template <class S> DGR_HD void make_empty(Record<S>& r) {
  r = {};
  r.half_height = -1;
}

// Empty where nothing reaches 1/255 or where anything is NaN or Inf.
template <class S> DGR_HD void make_record(const S* mean, const S* conic, S opacity, Record<S>& r) {
  const S a = conic[0], b = conic[1], c = conic[2], det = product(a, c) - product(b, b);
  if (!(opacity >= S(kMinAlpha) && opacity < std::numeric_limits<S>::infinity() && a > 0 && c > 0 && det > 0)) return make_empty(r);
  r.x = mean[0];
  r.y = mean[1];
  r.a = S(-0.5 * kLog2E) * a;
  r.b = S(-kLog2E) * b;
  r.c = S(-0.5 * kLog2E) * c;
  r.log_opacity = std::log2(opacity);
  // a dx^2 + 2 b dx dy + c dy^2 <= k
  const S k = product(product(S(2 * kLn2), r.log_opacity - S(kLog2MinAlpha)), S(1 + kSlack)) + S(kSlack);
  r.slope = -b / a;
  r.width2 = k / a;
  r.bend = det / product(a, a);
  r.half_height = std::sqrt(product(k, a) / det) + S(kSlackPixels);
  // d/d dy [slope dy + sqrt(width2 - bend dy^2)] = 0
  r.peak = product(r.slope, std::sqrt(r.width2 / product(r.bend, r.bend + product(r.slope, r.slope))));
  r.half_width = std::sqrt(product(k, c) / det) + S(kSlackPixels);
  // x - x is not zero for NaN and Inf, so neither is the sum.
  if (!((r.x - r.x) + (r.y - r.y) + (r.half_height - r.half_height) + (r.half_width - r.half_width) + (r.width2 - r.width2) + (r.bend - r.bend) + (r.peak - r.peak) == 0))
    make_empty(r);
}

// Whole pixels first to last, inclusive; none where first > last. Scalars, since huge values would overflow integers.
template <class S> struct Span {
  S first, last;
  DGR_HD bool any() const { return first <= last; }
};

// Rows of pixels, of `low` to `high`, whose centres the footprint covers.
template <class S> DGR_HD Span<S> pixel_rows(const Record<S>& r, S low, S high) {
  return {at_least(round_up(r.y - r.half_height - S(0.5)), low), at_most(round_down(r.y + r.half_height - S(0.5)), high)};
}

// Columns of pixels, of `low` to `high`, whose centres it covers in any of some rows.
template <class S> DGR_HD Span<S> pixel_columns(const Record<S>& r, const Span<S>& rows, S low, S high) {
  const S top = rows.first + S(0.5) - r.y, bottom = rows.last + S(0.5) - r.y;
  const S at_right = at_most(at_least(r.peak, top), bottom), at_left = at_most(at_least(-r.peak, top), bottom);
  const S right = r.x + product(r.slope, at_right) + root(at_least(r.width2 - product(r.bend, product(at_right, at_right)), S(0)));
  const S left = r.x + product(r.slope, at_left) - root(at_least(r.width2 - product(r.bend, product(at_left, at_left)), S(0)));
  return {at_least(round_up(left - S(kSlackPixels) - S(0.5)), low), at_most(round_down(right + S(kSlackPixels) - S(0.5)), high)};
}

// Calls visit(tile_row, first, last) for every row of tiles that the footprint meets, with the range of tile columns
// it meets there, inclusive.
template <class S, class Tiles, class Visit> DGR_HD void visit_tiles(const Record<S>& r, const Tiles& grid, const Visit& visit) {
  constexpr int kWidth = Tiles::kTileWidth, kHeight = Tiles::kTileHeight;
  const int left = int(grid.left), top = int(grid.top);
  const Span<S> rows = pixel_rows(r, S(top), S(grid.top + grid.height - 1));
  if (!rows.any()) return;
  const int first_row = (int(rows.first) - top) / kHeight, last_row = (int(rows.last) - top) / kHeight;
  for (int row = first_row; row <= last_row; ++row) {
    const int above = top + row * kHeight;
    const Span<S> part{at_least(S(above), rows.first), at_most(S(above + kHeight - 1), rows.last)};
    const Span<S> columns = pixel_columns(r, part, S(left), S(grid.left + grid.width - 1));
    if (columns.any()) visit(row, (int(columns.first) - left) / kWidth, (int(columns.last) - left) / kWidth);
  }
}

}  // namespace DGR_VARIANT
}  // namespace dgr
