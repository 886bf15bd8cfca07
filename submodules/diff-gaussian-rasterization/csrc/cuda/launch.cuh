// Shared by the CUDA drivers: launches on the current stream, and sums in a fixed order.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace dgr {

constexpr int kThreads = 256;  // of every block
constexpr int kWarp = 32;
constexpr int kWarps = kThreads / kWarp;
constexpr unsigned kAllLanes = 0xffffffffu;

// Blocks that give each of `items` a thread.
inline dim3 blocks_of(int64_t items) { return dim3(unsigned((items + kThreads - 1) / kThreads)); }

// An empty grid is no error here.
template <class... P, class... A> void launch(void (*kernel)(P...), dim3 grid, A... arguments) {
  if (grid.x == 0) return;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(kThreads);
  config.stream = c10::cuda::getCurrentCUDAStream();
  C10_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, P(arguments)...));
}

template <class S> S* data(const at::Tensor& t) { return t.numel() ? t.data_ptr<S>() : nullptr; }

#define DGR_DEVICE __device__ __forceinline__

DGR_DEVICE int64_t thread_index() { return int64_t(blockIdx.x) * kThreads + threadIdx.x; }

// The sum of the lanes, in lane 0.
template <class S> DGR_DEVICE S warp_sum(S x) {
  for (int step = kWarp / 2; step > 0; step /= 2) x += __shfl_down_sync(kAllLanes, x, step);
  return x;
}

// The sum over the threads of a block, in thread 0. `room`: shared, kWarps entries; a barrier must precede its reuse.
template <class S, class T> DGR_DEVICE T block_sum(S x, T* room) {
  x = warp_sum(x);
  if (threadIdx.x % kWarp == 0) room[threadIdx.x / kWarp] = T(x);
  __syncthreads();
  T total = 0;
  if (threadIdx.x == 0)
    for (int warp = 0; warp < kWarps; ++warp) total += room[warp];
  return total;
}

// out[c] = the sum of column c of rows [n, columns]; one block a column. The second pass of every sum over all blocks
// of a kernel: atomics would add in the order in which blocks happen to end.
template <class S, class T> __global__ void __launch_bounds__(kThreads) sum_columns(const T* rows, int64_t n, S* out) {
  __shared__ double room[kWarps];
  double total = 0;
  for (int64_t i = threadIdx.x; i < n; i += kThreads) total += double(rows[i * gridDim.x + blockIdx.x]);
  total = block_sum(total, room);
  if (threadIdx.x == 0) out[blockIdx.x] = S(total);
}

}  // namespace dgr
