// A tile as planes (row by row) and as patches, and which patches a Gaussian covers.
//
// A patch is 4x4 pixels, and what the inner loops read and write of it lies in one place, one plane behind the other:
// whole cache lines, so that a load never overlaps two recent stores, and a tile's 64 patches are the bits of a word.
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
// Side of a patch, its pixels, and patches in a row of them.
constexpr int kSide = 4, kPatch = kSide * kSide, kAcross = kTileWidth / kSide;
// A row of patches is a byte of the word, and a lane of the vectors that compute it.
static_assert(kAcross == kLanes && kTileHeight / kSide == kLanes);

// The pixels of a patch, row by row.
template <class S> struct WideOf { using Type = Group<V<S>, kPatch / kLanes>; };
#if defined(DGR_AVX512)
template <> struct WideOf<float> { using Type = Vec<float, kPatch>; };
#endif
template <class S> using Wide = typename WideOf<S>::Type;

using Ints = NativeOf<float, kLanes>::Bits;
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
// at a pixel does not depend on the window.
template <class S> struct Centers {
  S left, top;
  alignas(64) S columns[kAcross * kPatch], rows[kAcross * kPatch], tops[kLanes];

  Centers(const TileGrid& grid, const Region& region) : left(S(grid.left + region.x)), top(S(grid.top + region.y)) {
    for (int i = 0; i < kAcross * kPatch; ++i) {
      columns[i] = left + (S(i / kPatch * kSide + i % kSide) + S(0.5));
      rows[i] = top + (S(i / kSide) + S(0.5));
    }
    for (int i = 0; i < kLanes; ++i) tops[i] = rows[i * kPatch];
  }
};

// The patches with pixels whose centres the footprint covers, a bit each, and some more at its edge.
template <class S> DGR_HD uint64_t covered(const Record<S>& r, const Centers<S>& centers) {
  // The first and the last row of pixels of every row of patches, and the reach to both sides between them.
  const V<S> top = V<S>::load(centers.tops) - V<S>(r.y), bottom = top + V<S>(S(kSide - 1));
  const auto meets = (bottom >= V<S>(-r.half_height)) & (V<S>(r.half_height) >= top);
  const V<S> at_right = at_most(at_least(V<S>(r.peak), top), bottom), at_left = at_most(at_least(V<S>(-r.peak), top), bottom);
  const auto half = [&](V<S> dy) DGR_LAMBDA { return root(at_least(V<S>(r.width2) - V<S>(r.bend) * dy * dy, V<S>(S(0)))); };
  // The centre from the corner of the tile. Rounded, unlike dx: only which patches to try depends on it.
  const S x = r.x - centers.left;
  const V<S> right = V<S>(x + S(kSlackPixels - 0.5)) + V<S>(r.slope) * at_right + half(at_right);
  const V<S> left = V<S>(x - S(kSlackPixels + kSide - 0.5)) + V<S>(r.slope) * at_left - half(at_left);
  // Rounded up and down to whole patches, from `first` to in front of `end`.
  const V<S> zero(S(0)), share(S(1) / S(kSide)), across{S(kAcross)};
  const Ints first = ints(at_most(at_least(left * share, zero) + V<S>(S(0.999)), across));
  const Ints end = ints(at_least(at_most(right * share + V<S>(S(1)), across), zero));
  const Ints one = Ints{} + 1, bits = ((one << end) - (one << first)) & (end > first) & ints(meets);
  return bytes(bits);
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

// Between a plane and its place in the patches, which are `stride` scalars apart.
template <class S> void to_patches(const S* plane, S* patches, int stride) {
  for (int row = 0; row < kTileHeight; ++row)
    for (int k = 0; k < kAcross; ++k)
      std::memcpy(patches + (row / kSide * kAcross + k) * stride + row % kSide * kSide, plane + row * kTileWidth + k * kSide, kSide * sizeof(S));
}

template <class S> void from_patches(const S* patches, int stride, S* plane) {
  for (int row = 0; row < kTileHeight; ++row)
    for (int k = 0; k < kAcross; ++k)
      std::memcpy(plane + row * kTileWidth + k * kSide, patches + (row / kSide * kAcross + k) * stride + row % kSide * kSide, kSide * sizeof(S));
}

// The patches that have unfinished pixels, a bit each; their transmittance is their first plane.
template <class S> uint64_t unfinished(const S* patches, int stride) {
  uint64_t live = 0;
  for (int p = 0; p < kAcross * kLanes; ++p) live |= uint64_t(any(load<Wide<S>>(patches + p * stride) > Wide<S>(S(0)))) << p;
  return live;
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

// Planes start on a cache line.
template <class S> class Scratch {
 public:
  explicit Scratch(int64_t n) : storage_(n + 64 / sizeof(S)) {}
  S* data() { return reinterpret_cast<S*>((reinterpret_cast<uintptr_t>(storage_.data()) + 63) / 64 * 64); }

 private:
  std::vector<S> storage_;
};

}  // namespace
}  // namespace DGR_VARIANT
}  // namespace dgr
