// Driver of common/adam.h: one thread an entry, blockIdx.y the tensor, so that a step is one launch.
#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>

#include "../args.h"
#include "../common/adam.h"
#include "launch.cuh"

namespace dgr {
namespace {

// Tensors of a launch: their pointers travel with it.
constexpr int kTensors = 16;

template <class S> struct AdamTensor {
  S *params, *moments, *squares;
  const S* grads;
  int64_t entries, columns;
  double rate, root2;
};
template <class S> struct AdamTensors { AdamTensor<S> at[kTensors]; };

template <class S>
__global__ void __launch_bounds__(kThreads) adam_kernel(AdamTensors<S> tensors, const bool* __restrict__ visible, double beta1, double beta2, double eps) {
  const AdamTensor<S>& tensor = tensors.at[blockIdx.y];
  const int64_t i = thread_index();
  if (i >= tensor.entries || (visible && !visible[i / tensor.columns])) return;
  const AdamStep<S> step(tensor.rate, tensor.root2, beta1, beta2, eps);
  adam_entry(step, tensor.grads[i], tensor.params[i], tensor.moments[i], tensor.squares[i]);
}

void adam_update_cuda(at::TensorList params, at::TensorList grads, at::TensorList moments, at::TensorList squares,
                      const std::optional<at::Tensor>& visible, at::ArrayRef<double> rates, at::ArrayRef<double> roots2, double beta1,
                      double beta2, double eps) {
  check_visible(visible, params);
  check_adam(params, grads, moments, squares, visible, rates, roots2);
  if (params.empty()) return;
  const c10::cuda::CUDAGuard guard(params[0].device());
  for (size_t first = 0; first < params.size();) {
    on_scalar(params[first], [&](auto tag) {
      using S = decltype(tag);
      AdamTensors<S> tensors = {};
      int64_t largest = 0;
      unsigned count = 0;
      // Neighbours of one dtype share a launch.
      for (; count < kTensors && first < params.size() && params[first].scalar_type() == params[first - count].scalar_type(); ++count, ++first) {
        const int64_t entries = params[first].numel(), rows = params[first].size(0);
        tensors.at[count] = {data<S>(params[first]), data<S>(moments[first]), data<S>(squares[first]), data<S>(grads[first]), entries,
                             rows ? std::max<int64_t>(1, entries / rows) : 1, rates[first], roots2[first]};
        largest = std::max(largest, entries);
      }
      launch(adam_kernel<S>, dim3(blocks_of(largest).x, count), tensors, visible ? data<bool>(*visible) : nullptr, beta1, beta2, eps);
    });
  }
}

}  // namespace

TORCH_LIBRARY_IMPL(diff_gaussian_rasterization, CUDA, m) { m.impl("adam_update", &adam_update_cuda); }

}  // namespace dgr
