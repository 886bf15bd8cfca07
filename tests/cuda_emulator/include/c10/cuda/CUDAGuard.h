#pragma once
#include <c10/core/Device.h>

#include <optional>

namespace c10::cuda {

struct CUDAGuard {
  explicit CUDAGuard(Device) {}
};
struct OptionalCUDAGuard {
  explicit OptionalCUDAGuard(std::optional<Device>) {}
};

}  // namespace c10::cuda
