// Tiles, the records that tile kernels read, and which tiles a Gaussian meets.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "../common/constants.h"

namespace dgr {

// A tile's planes (transmittance, channels) stay in a first-level cache; a vector is an aligned eighth of 64 pixels.
constexpr int kTileWidth = 32;
constexpr int kTileHeight = 32;
constexpr int kTilePixels = kTileWidth * kTileHeight;
constexpr int kLanes = 8;

struct TileGrid {
  int64_t width, height, columns, rows;

  TileGrid(int64_t w, int64_t h)
      : width(w), height(h), columns((w + kTileWidth - 1) / kTileWidth), rows((h + kTileHeight - 1) / kTileHeight) {}
  int64_t count() const { return columns * rows; }
};

// One visible Gaussian, ready to be drawn; its features (colors, then depth) follow in memory.
// The footprint is the ellipse alpha >= 1/255. At height dy from its centre it covers
// x + slope dy +- sqrt(width2 - bend dy^2), for |dy| <= half_height.
template <class S> struct Record {
  S x, y;
  S a, b, c, log_opacity;  // of the exponent, see common/blend.h
  S slope, width2, bend, half_height;
  S peak;  // dy at which the footprint reaches farthest to the right; -peak: to the left
  S pad;

  const S* features() const { return reinterpret_cast<const S*>(this + 1); }
  S* features() { return reinterpret_cast<S*>(this + 1); }
};

template <class S> constexpr int kHeader = sizeof(Record<S>) / sizeof(S);

// Scalars a record takes: whole 16 byte steps.
template <class S> int64_t record_stride(int64_t features) { return (kHeader<S> + features + 3) / 4 * 4; }

// Relative and absolute slack (px) of the footprint, above the round-off of its formulas. Wider is only slower: every
// pixel is tested again.
constexpr double kSlack = 1e-5;
constexpr double kSlackPixels = 0.01;

// Nothing of it is drawn: its footprint has no rows.
template <class S> void make_empty(Record<S>& r) {
  r = {};
  r.half_height = -1;
}

// Empty where nothing reaches 1/255 or where anything is NaN or Inf.
template <class S> void make_record(const S* mean, const S* conic, S opacity, Record<S>& r) {
  const S a = conic[0], b = conic[1], c = conic[2], det = a * c - b * b;
  if (!(opacity >= S(kMinAlpha) && opacity < std::numeric_limits<S>::infinity() && a > 0 && c > 0 && det > 0)) return make_empty(r);
  r.x = mean[0];
  r.y = mean[1];
  r.a = S(-0.5 * kLog2E) * a;
  r.b = S(-kLog2E) * b;
  r.c = S(-0.5 * kLog2E) * c;
  r.log_opacity = std::log2(opacity);
  // a dx^2 + 2 b dx dy + c dy^2 <= k
  const S k = S(2 * kLn2) * (r.log_opacity - S(kLog2MinAlpha)) * S(1 + kSlack) + S(kSlack);
  r.slope = -b / a;
  r.width2 = k / a;
  r.bend = det / (a * a);
  r.half_height = std::sqrt(k * a / det) + S(kSlackPixels);
  // d/d dy [slope dy + sqrt(width2 - bend dy^2)] = 0
  r.peak = r.slope * std::sqrt(r.width2 / (r.bend * (r.bend + r.slope * r.slope)));
  r.pad = 0;
  // Differences that are not zero, and so a sum that is not, betray NaN and Inf.
  if (!((r.x - r.x) + (r.y - r.y) + (r.half_height - r.half_height) + (r.width2 - r.width2) + (r.bend - r.bend) + (r.peak - r.peak) == 0))
    make_empty(r);
}

// Calls visit(first, last) for every row of tiles that the footprint meets, with the range of tile columns it meets
// there: visit(tile_row, first, last), inclusive.
template <class S, class Visit> void visit_tiles(const Record<S>& r, const TileGrid& grid, const Visit& visit) {
  // Rows of pixels whose centres the footprint covers; comparisons in S keep huge values out of the integers.
  const S top = std::max(std::ceil(r.y - r.half_height - S(0.5)), S(0));
  const S bottom = std::min(std::floor(r.y + r.half_height - S(0.5)), S(grid.height - 1));
  if (!(top <= bottom)) return;
  const int64_t first_row = int64_t(top) / kTileHeight, last_row = int64_t(bottom) / kTileHeight;
  for (int64_t row = first_row; row <= last_row; ++row) {
    const S lo = std::max(S(row * kTileHeight), top) + S(0.5) - r.y;
    const S hi = std::min(S((row + 1) * kTileHeight - 1), bottom) + S(0.5) - r.y;
    const S at_right = std::min(std::max(r.peak, lo), hi), at_left = std::min(std::max(-r.peak, lo), hi);
    const S right = r.x + r.slope * at_right + std::sqrt(std::max(r.width2 - r.bend * at_right * at_right, S(0))) + S(kSlackPixels);
    const S left = r.x + r.slope * at_left - std::sqrt(std::max(r.width2 - r.bend * at_left * at_left, S(0))) - S(kSlackPixels);
    const S first = std::max(std::ceil(left - S(0.5)), S(0));
    const S last = std::min(std::floor(right - S(0.5)), S(grid.width - 1));
    if (first <= last) visit(row, int64_t(first) / kTileWidth, int64_t(last) / kTileWidth);
  }
}

}  // namespace dgr
