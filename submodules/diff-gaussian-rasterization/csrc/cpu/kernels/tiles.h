// The tiles of the CPU driver.
#pragma once

#include "../../common/tiles.h"

namespace dgr {
inline namespace DGR_VARIANT {

// A tile's planes (transmittance, channels) fit into the first-level cache; a vector is an aligned eighth of 64 pixels.
constexpr int kTileWidth = 32;
constexpr int kTileHeight = 32;
constexpr int kTilePixels = kTileWidth * kTileHeight;

using TileGrid = Tiling<kTileWidth, kTileHeight>;

// Squares of a mask in a tile, row by row; all of them as bits.
constexpr int kSquaresAcross = kTileWidth / kSquare, kSquaresDown = kTileHeight / kSquare;
constexpr int kAllSquares = (1 << kSquaresAcross * kSquaresDown) - 1;
static_assert(kTileWidth % kSquare == 0 && kTileHeight % kSquare == 0 && kAllSquares <= 255);

// Scalars a record takes: whole 16 byte steps.
template <class S> int64_t record_stride(int64_t features) { return (kHeader<S> + features + 3) / 4 * 4; }

// Moments of a pair: sums over its pixels of v, v dx, v dy, v dx dx, v dx dy, v dy dy, with v the gradient of ln alpha.
constexpr int kMoments = 6;
// Scalars in a pair's row of gradients: moments, features, and up to whole steps of sum_lanes.
constexpr int pair_row(int features) { return (kMoments + features + 3) / 4 * 4; }

}  // namespace DGR_VARIANT
}  // namespace dgr
