// The part of the image that is drawn: its corner and size in pixels of the image.
#pragma once

#include <cstdint>

namespace dgr {

struct Window { int64_t x, y, width, height; };

// Side, in pixels, of the squares that a mask of tiles names. They are counted from the corner of the window.
constexpr int kSquare = 16;

// Which of these squares are drawn, row by row; null: all.
struct Squares { const bool* drawn; int across, down; };

}  // namespace dgr
