// Numbers of the device that the host reads without emptying the device's queue.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime.h>

namespace anchor_decode {

// Numbers as they are at this place of the current stream. They are copied into page-locked memory; while the host
// waits for them, the device goes on with what was launched behind this place.
class Late {
 public:
  explicit Late(const at::Tensor& numbers) : copy_(numbers.to(at::TensorOptions(at::kCPU), true)) {
    C10_CUDA_CHECK(cudaEventCreateWithFlags(&copied_, cudaEventDisableTiming));
    C10_CUDA_CHECK(cudaEventRecord(copied_, c10::cuda::getCurrentCUDAStream()));
  }
  ~Late() { cudaEventDestroy(copied_); }
  Late(const Late&) = delete;
  Late& operator=(const Late&) = delete;

  const at::Tensor& wait() const {
    C10_CUDA_CHECK(cudaEventSynchronize(copied_));
    return copy_;
  }

 private:
  at::Tensor copy_;
  cudaEvent_t copied_ = nullptr;
};

}  // namespace anchor_decode
