// The tiles of the CPU driver.
#pragma once

#include "../common/tiles.h"

namespace dgr {

// A tile's planes (transmittance, channels) stay in a first-level cache; a vector is an aligned eighth of 64 pixels.
constexpr int kTileWidth = 32;
constexpr int kTileHeight = 32;
constexpr int kTilePixels = kTileWidth * kTileHeight;
constexpr int kLanes = 8;

using TileGrid = Tiling<kTileWidth, kTileHeight>;

// Scalars a record takes: whole 16 byte steps.
template <class S> int64_t record_stride(int64_t features) { return (kHeader<S> + features + 3) / 4 * 4; }

}  // namespace dgr
