// Driver of kernels/adam.h: all tensors of a step in one parallel region.
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "../args.h"
#include "kernels.h"
#include "team.h"

namespace dgr {
namespace {

using cpu_team::parallel_items;

// Entries a task takes.
constexpr int64_t kGrain = 1 << 15;

struct Task { size_t tensor; int64_t begin, end; };

void adam_update_cpu(at::TensorList params, at::TensorList grads, at::TensorList moments, at::TensorList squares,
                     const std::optional<at::Tensor>& visible, at::ArrayRef<double> rates, at::ArrayRef<double> roots2, double beta1,
                     double beta2, double eps) {
  check_visible(visible, params);
  check_adam(params, grads, moments, squares, visible, rates, roots2);
  std::vector<Task> tasks;
  for (size_t i = 0; i < params.size(); ++i) {
    if (params[i].numel() == 0) continue;
    const int64_t rows = params[i].size(0), size = std::max<int64_t>(1, kGrain / (params[i].numel() / rows));
    for (int64_t begin = 0; begin < rows; begin += size) tasks.push_back({i, begin, std::min(rows, begin + size)});
  }
  parallel_items(int64_t(tasks.size()), [&](int64_t t) {
    const Task& task = tasks[t];
    const size_t i = task.tensor;
    on_scalar(params[i], [&](auto tag) {
      using S = decltype(tag);
      const AdamRows<S> rows{params[i].data_ptr<S>(),  moments[i].data_ptr<S>(), squares[i].data_ptr<S>(), grads[i].const_data_ptr<S>(),
                             visible ? visible->const_data_ptr<bool>() : nullptr, params[i].numel() / params[i].size(0),
                             rates[i], roots2[i], beta1, beta2, eps};
      kernels().of(S{}).adam(rows, task.begin, task.end);
    });
  });
}

}  // namespace

TORCH_LIBRARY_IMPL(diff_gaussian_rasterization, CPU, m) { m.impl("adam_update", &adam_update_cpu); }

}  // namespace dgr
