// Tiles, blocks of pixels and batches of records: shared by the kernels that read the lists.
//
// A block of threads has a tile of 16x16 pixels and reads its list, one thread per pixel. Larger tiles would share
// each record among more pixels but would put more pixels outside of footprints through the barriers of a batch;
// smaller ones multiply the pairs, which are what is sorted, stored and summed. Within a tile every warp owns 8x4
// pixels and tests each record's footprint against them exactly, a lane a record: a Gaussian of a few pixels costs the
// one to four warps that it touches, and the rest of the warp's work is skipped.
#pragma once

#include "../common/tiles.h"
#include "launch.cuh"

namespace dgr {

constexpr int kTile = 16;
using Grid = Tiling<kTile, kTile>;
// Pixels of a warp.
constexpr int kPatchWidth = 8, kPatchHeight = 4;
static_assert(kPatchWidth * kPatchHeight == kWarp && kTile * kTile == kThreads && kTile == kSquare);

// Whether a type goes through the sizes of float: batches, slots, features in a chunk. A test compiles double so, to hold
// them against the reference at double's precision.
#if defined(DGR_TEST_SIZES_OF_FLOAT)
template <class S> constexpr bool kIsSmall = true;
#else
template <class S> constexpr bool kIsSmall = sizeof(S) == 4;
#endif

// Features (colors, then depth) that a kernel carries in registers. More of them go through in chunks, each a block of
// its own: every result is a sum over features.
constexpr int chunks_of(int64_t features, int in_chunk) { return int((features + in_chunk - 1) / in_chunk); }

// Scalars a record takes: whole chunks behind the header, so that none reads past its row.
template <class S> int64_t record_stride(int64_t features) {
  const int step = features <= 4 || !kIsSmall<S> ? 4 : 8;
  return kHeader<S> + (features + step - 1) / step * step;
}

template <class S> struct Lists {
  const S* records;
  int64_t stride;
  const int32_t *tile_start, *ranks;
};

// Where a thread's warp and pixel lie in the image, and whether and where the pixel lies in the window.
struct Place {
  int warp, lane, left, top, x, y;
  bool inside;
  int64_t pixel;

  DGR_DEVICE Place(const Grid& grid, int tile) {
    warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    left = int(grid.left) + tile % int(grid.columns) * kTile + warp % (kTile / kPatchWidth) * kPatchWidth;
    top = int(grid.top) + tile / int(grid.columns) * kTile + warp / (kTile / kPatchWidth) * kPatchHeight;
    x = left + lane % kPatchWidth, y = top + lane / kPatchWidth;
    inside = x < grid.left + grid.width && y < grid.top + grid.height;
    pixel = (y - grid.top) * grid.width + (x - grid.left);
  }
  // Does the footprint cover a pixel of the warp?
  template <class S> DGR_DEVICE bool meets(const Record<S>& r) const {
    const Span<S> rows = pixel_rows(r, S(top), S(top + kPatchHeight - 1));
    return rows.any() && pixel_columns(r, rows, S(left), S(left + kPatchWidth - 1)).any();
  }
};

// Records of `Size` places of a list in shared memory: the header and N features of a chunk. Each thread moves one unit
// of 16 bytes, four floats or two doubles, and asks for the next batch's while this one is being drawn.
template <class S, int N, int Size> struct Batch {
  static constexpr int kPerUnit = kIsSmall<S> ? 4 : 2;
  struct alignas(16) Unit { S at[kPerUnit]; };
  static constexpr int kHeaderUnits = kHeader<S> / kPerUnit, kFeatureUnits = (N + 3) / 4 * 4 / kPerUnit;
  static constexpr int kUnits = kHeaderUnits + kFeatureUnits;
  // From record to record: odd, so that lanes that read a record each find their units in different banks.
  static constexpr int kRow = kUnits | 1;
  static_assert(Size * kUnits <= kThreads);

  Unit units[Size * kRow];

  DGR_DEVICE static Unit fetch(const Lists<S>& lists, uint32_t from, uint32_t end, int chunk) {
    const uint32_t place = from + threadIdx.x / kUnits;
    if (int(threadIdx.x) >= Size * kUnits || place >= end) return Unit{};
    const int unit = int(threadIdx.x) % kUnits, skip = unit < kHeaderUnits ? 0 : chunk * kFeatureUnits;
    return reinterpret_cast<const Unit*>(lists.records + lists.ranks[place] * lists.stride)[unit + skip];
  }
  DGR_DEVICE void put(const Unit& unit) {
    if (int(threadIdx.x) < Size * kUnits) units[int(threadIdx.x) / kUnits * kRow + int(threadIdx.x) % kUnits] = unit;
  }
  DGR_DEVICE const Record<S>& record(int i) const { return *reinterpret_cast<const Record<S>*>(units + i * kRow); }
};

}  // namespace dgr
