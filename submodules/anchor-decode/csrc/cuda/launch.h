// One kernel launch, checked. The plain C++ form of <<<>>>: it can be parsed without nvcc.
#pragma once

#include <c10/cuda/CUDAException.h>
#include <cuda_runtime.h>

namespace anchor_decode {

// An empty grid is no error.
template <class... P, class... A>
void launch(void (*kernel)(P...), int64_t blocks, int threads, int64_t shared_bytes, cudaStream_t stream, const A&... arguments) {
  if (blocks == 0) return;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(blocks));
  config.blockDim = dim3(unsigned(threads));
  config.dynamicSmemBytes = size_t(shared_bytes);
  config.stream = stream;
  C10_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, P(arguments)...));
}

}  // namespace anchor_decode
