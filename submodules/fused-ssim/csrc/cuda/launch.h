// One kernel launch, checked. The plain C++ form of <<<>>>: it can be parsed without nvcc.
#pragma once

#include <c10/cuda/CUDAException.h>
#include <cuda_runtime.h>

namespace fused_ssim {

template <class... P, class... A>
void launch(void (*kernel)(P...), int64_t blocks, int threads, cudaStream_t stream, const A&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(blocks));
  config.blockDim = dim3(unsigned(threads));
  config.stream = stream;
  C10_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, P(arguments)...));
}

}  // namespace fused_ssim
