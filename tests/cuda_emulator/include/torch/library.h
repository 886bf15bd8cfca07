// Registers the drivers' operators beside the real ones: library `x` becomes `x_emulated`, CUDA becomes CPU, because
// the tensors are CPU tensors. Nothing changes in the sources.
#pragma once
#include_next <torch/library.h>

#undef TORCH_LIBRARY
#undef TORCH_LIBRARY_IMPL
#define CUDA_EMULATOR_LIBRARY(kind, name, key, m, id)                                                           \
  static void C10_CONCATENATE(cuda_emulator_register_, id)(torch::Library&);                                    \
  static const torch::detail::TorchLibraryInit C10_CONCATENATE(cuda_emulator_library_, id)(                     \
      torch::Library::kind, &C10_CONCATENATE(cuda_emulator_register_, id), name "_emulated", key, __FILE__, __LINE__); \
  static void C10_CONCATENATE(cuda_emulator_register_, id)(torch::Library & m)
#define TORCH_LIBRARY(ns, m) CUDA_EMULATOR_LIBRARY(DEF, #ns, std::nullopt, m, __COUNTER__)
#define TORCH_LIBRARY_IMPL(ns, k, m) CUDA_EMULATOR_LIBRARY(IMPL, #ns, c10::DispatchKey::CPU, m, __COUNTER__)
