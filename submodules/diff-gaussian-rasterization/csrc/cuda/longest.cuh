// The order in which blocks take tiles: longest lists first. A device starts blocks in the order of their numbers, and
// a kernel ends with its last block: a long list that is begun last keeps the kernel alive when most of the device has
// nothing left to do.
//
// Lists are ordered by the power of two that their length reaches. This is enough for short ones to come last, and leaves
// neighbours, which share Gaussians, together. A block finds the tiles of one such class and counts those of longer
// ones; it needs nothing from other blocks, so that this is one launch, and no atomics decide the order.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include "launch.cuh"

namespace dgr {

constexpr int kClasses = 32;  // empty lists, and every power of two that an int32 reaches

// 0: an empty list, or what foreign callers may name in place of one.
DGR_DEVICE int class_of(const int32_t* tile_start, int64_t tile) {
  const int64_t length = int64_t(tile_start[tile + 1]) - tile_start[tile];
  const int bits = length > 0 ? min(64 - __clzll(length), kClasses - 1) : 0;
#if defined(DGR_TEST_CLASS)
  return DGR_TEST_CLASS(bits);  // any order must give the same bits
#else
  return bits;
#endif
}

// blockIdx.x: class, from the longest. Within a class tiles keep their order.
static __global__ void __launch_bounds__(kThreads)
    order_tiles(const int32_t* __restrict__ tile_start, int64_t tiles, int32_t* __restrict__ order) {
  __shared__ int own_of[kWarps], longer_of[kWarps];
  const int wanted = kClasses - 1 - int(blockIdx.x), lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  // Consecutive tiles for a thread.
  const int64_t share = (tiles + kThreads - 1) / kThreads, begin = share * threadIdx.x;
  const int64_t end = begin + share < tiles ? begin + share : tiles;
  int own = 0, longer = 0;
  for (int64_t tile = begin; tile < end; ++tile) {
    const int found = class_of(tile_start, tile);
    own += found == wanted;
    longer += found > wanted;
  }
  int up_to = own;  // this thread
  for (int step = 1; step < kWarp; step *= 2) {
    const int others = __shfl_up_sync(kAllLanes, up_to, step);
    if (lane >= step) up_to += others;
  }
  longer = warp_sum(longer);
  if (lane == kWarp - 1) own_of[warp] = up_to;
  if (lane == 0) longer_of[warp] = longer;
  __syncthreads();
  int place = up_to - own;
  for (int w = 0; w < kWarps; ++w) place += longer_of[w] + (w < warp ? own_of[w] : 0);
  for (int64_t tile = begin; tile < end; ++tile)
    if (class_of(tile_start, tile) == wanted) order[place++] = int32_t(tile);
}

// int32 [tiles] from tile_start [tiles+1].
inline at::Tensor longest_first(const at::Tensor& tile_start) {
  const int64_t tiles = tile_start.numel() - 1;
  at::Tensor order = at::empty({tiles}, tile_start.options());
  launch(order_tiles, dim3(kClasses), data<int32_t>(tile_start), tiles, data<int32_t>(order));
  return order;
}

}  // namespace dgr
