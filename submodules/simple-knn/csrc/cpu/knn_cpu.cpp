// CPU driver: a balanced k-d tree; kernels/packets.h traverses it.
//
// The tree is implicit: the points are permuted so that node i of level l holds [N*i >> l, N*(i+1) >> l), split at the
// median of its longest side. So it stays balanced however the points are clustered, and duplicates only make boxes of
// size 0.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "../common/nearest.h"
#include "../points.h"
#include "choose.h"
#include "kernels.h"
#include "team.h"

namespace simple_knn {
namespace {

#if defined(CPU_KERNELS_BY_CPU)
constexpr const Kernels* kTables[] = {&kernels_v4, &kernels_v3};
#else
constexpr const Kernels* kTables[] = {&kernels_plain};
#endif

size_t chosen() {
  static const size_t variant = cpu_variants::choose("simple_knn", cpu_variants::features(), cpu_variants::wanted());
  return variant;
}

std::string choice(const std::string& features, const std::string& wanted) {
  return cpu_variants::variants()[cpu_variants::choose("simple_knn", features, wanted)].name;
}

constexpr int64_t kLeafPoints = 16;  // at most; a leaf is then at least half full
constexpr int kTopLevels = 6;            // 64 subtrees keep many cores busy evenly
constexpr int64_t kTaskPoints = 8192;    // about a millisecond of work

template <typename T>
class Builder {
 public:
  Builder(const T* xyz, int64_t count) : points_(count) {
    for (int64_t row = 0; row < count; ++row) points_[row] = {{xyz[3 * row], xyz[3 * row + 1], xyz[3 * row + 2]}, row};
    int depth = 0;
    while ((count + (int64_t(1) << depth) - 1) >> depth > kLeafPoints) ++depth;
    boxes_.resize((int64_t(2) << depth) - 1);
    tree_ = {count, depth, points_.data(), boxes_.data()};
    // The first levels one by one, each shared by the threads; below them whole subtrees.
    const int top = std::min(tree_.depth, kTopLevels);
    for (int level = 0; level < top; ++level) {
      const int64_t nodes = int64_t(1) << level;
      cpu_team::parallel_ranges(nodes, grain(nodes), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) split(level, i);
      });
    }
    const int64_t subtrees = int64_t(1) << top;
    cpu_team::parallel_ranges(subtrees, grain(subtrees), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) build(top, i);
    });
  }

  void mean_squared_distances(T* out) const {
    const auto kernel = kTables[chosen()]->of(T{});
    const int64_t leaves = int64_t(1) << tree_.depth;
    cpu_team::parallel_ranges(leaves, grain(leaves), [&](int64_t begin, int64_t end) { kernel(tree_, begin, end, out); });
  }

 private:
  // Number of a level's nodes in a task, so that it is worth starting a thread.
  int64_t grain(int64_t nodes) const { return std::max<int64_t>(1, kTaskPoints * nodes / std::max<int64_t>(1, tree_.count)); }

  void build(int level, int64_t i) {
    split(level, i);
    if (level == tree_.depth) return;
    build(level + 1, 2 * i);
    build(level + 1, 2 * i + 1);
  }

  void split(int level, int64_t i) {
    Point<T>*from = tree_.points + tree_.first(level, i), *to = tree_.points + tree_.first(level, i + 1);
    const Box<T> around = tree_.box(level, i) = bounds<T>(from, to - from);
    if (level == tree_.depth) return;
    int axis = 0;
    for (int other = 1; other < 3; ++other) {
      if (around.high[other] - around.low[other] > around.high[axis] - around.low[axis]) axis = other;
    }
    std::nth_element(from, tree_.points + tree_.first(level + 1, 2 * i + 1), to,
                     [axis](const Point<T>& a, const Point<T>& b) { return a.at[axis] < b.at[axis]; });
  }

  Tree<T> tree_{};
  std::vector<Point<T>> points_;
  std::vector<Box<T>> boxes_;
};

template <typename T>
at::Tensor run(const at::Tensor& points) {
  const int64_t count = points.size(0);
  const T* xyz = points.const_data_ptr<T>();
  for (int64_t i = 0; i < 3 * count; ++i) {
    TORCH_CHECK(std::isfinite(xyz[i]), "simple_knn: point ", i / 3, " is not finite; remove it");
  }
  at::Tensor out = at::empty({count}, points.options());
  if (count) Builder<T>(xyz, count).mean_squared_distances(out.mutable_data_ptr<T>());
  return out;
}

at::Tensor mean_squared_distance(const at::Tensor& points) {
  check(points);
  return points.scalar_type() == at::kFloat ? run<float>(points.contiguous()) : run<double>(points.contiguous());
}

}  // namespace
}  // namespace simple_knn

// Here and not in binding.cpp, since they belong to the CPU build alone.
TORCH_LIBRARY_FRAGMENT(simple_knn, m) {
  // Which variant runs here, and which would on a CPU with these features (separated by spaces).
  m.def("cpu_kernels() -> str", [] { return cpu_variants::variants()[simple_knn::chosen()].name; });
  m.def("cpu_kernels_for(str features, str wanted) -> str", &simple_knn::choice);
}

TORCH_LIBRARY_IMPL(simple_knn, CPU, m) { m.impl("mean_squared_distance", simple_knn::mean_squared_distance); }
