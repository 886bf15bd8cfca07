// CUDA driver: points in Morton order, boxes around runs of them, one thread for each point.
//
// The tree is implicit: 8 consecutive points make a leaf, 8 consecutive nodes of a level one node of the next. A walk
// starts in the point's own leaf and climbs: at each level it descends into the siblings whose box is nearer than the
// third neighbour so far. It needs no stack, and neighbouring threads take similar paths. The Morton order only decides
// how tight the boxes are, never the result: the sum of three sorted distances has the same bits for any order.
#include <ATen/core/Tensor.h>
#include <ATen/ops/aminmax.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <cub/device/device_radix_sort.cuh>
#include <torch/library.h>

#include <limits>

#include "../common/nearest.h"
#include "../points.h"
#include "launch.h"

namespace simple_knn {
namespace {

// A point or a node. Below 2^31, so that what follows the last one fits too; coordinates are counted by size_t.
using Index = unsigned;

constexpr int kThreads = 128;
constexpr Index kFanOut = 8;     // points of a leaf, children of a node
constexpr int kMaxLevels = 11;   // 8^11 > 2^31
constexpr int kAxisBits = 21;    // three of them fill a 64 bit key

int64_t blocks_for(Index items) { return (int64_t(items) + kThreads - 1) / kThreads; }

__device__ Index thread_index() { return blockIdx.x * kThreads + threadIdx.x; }

// Where each level's boxes start in one array; level 0 are the leaves, the last level is one box.
struct Levels {
  int count = 0;
  Index start[kMaxLevels + 1] = {};

  explicit Levels(Index points) {
    Index nodes = points;
    do {
      nodes = (nodes + kFanOut - 1) / kFanOut;
      start[count + 1] = start[count] + nodes;
      ++count;
    } while (nodes > 1);
  }
  __host__ __device__ Index nodes(int level) const { return start[level + 1] - start[level]; }
};

template <typename T>
__global__ void find_not_finite(const T* __restrict__ xyz, Index count, int* __restrict__ first) {
  const Index row = thread_index();
  if (row >= count) return;
  bool finite = true;
  // x - x is 0 if x is finite, and NaN otherwise.
  for (int axis = 0; axis < 3; ++axis) finite &= xyz[3 * size_t(row) + axis] - xyz[3 * size_t(row) + axis] == T(0);
  if (!finite) atomicMin(first, int(row));
}

// The low 21 bits of x, two zeros after each.
__device__ uint64_t spread(uint64_t x) {
  x = (x | x << 32) & 0x001f00000000ffffull;
  x = (x | x << 16) & 0x001f0000ff0000ffull;
  x = (x | x << 8) & 0x100f00f00f00f00full;
  x = (x | x << 4) & 0x10c30c30c30c30c3ull;
  return (x | x << 2) & 0x1249249249249249ull;
}

// Halves of coordinates and double precision: no difference overflows, whatever the points.
template <typename T>
__global__ void morton_keys(const T* __restrict__ xyz, Index count, const T* __restrict__ low,
                            const T* __restrict__ high, uint64_t* __restrict__ keys, int* __restrict__ rows) {
  const Index row = thread_index();
  if (row >= count) return;
  double side = 0;
  for (int axis = 0; axis < 3; ++axis) side = larger(side, double(high[axis]) / 2 - double(low[axis]) / 2);
  uint64_t key = 0;
  for (int axis = 0; axis < 3; ++axis) {
    const double offset = double(xyz[3 * size_t(row) + axis]) / 2 - double(low[axis]) / 2;
    const double cells = double((1 << kAxisBits) - 1);
    key |= spread(uint64_t(side > 0 ? smaller(offset / side, 1.0) * cells : 0.0)) << axis;
  }
  keys[row] = key;
  rows[row] = int(row);
}

template <typename T>
__global__ void gather(const T* __restrict__ xyz, Index count, const int* __restrict__ rows, T* __restrict__ sorted) {
  const Index i = thread_index();
  if (i >= count) return;
  for (int axis = 0; axis < 3; ++axis) sorted[3 * size_t(i) + axis] = xyz[3 * size_t(rows[i]) + axis];
}

template <typename T>
__device__ void grow(Box<T>& box, const T* low, const T* high) {
  for (int axis = 0; axis < 3; ++axis) {
    box.low[axis] = smaller(box.low[axis], low[axis]);
    box.high[axis] = larger(box.high[axis], high[axis]);
  }
}

template <typename T>
__global__ void bound_points(const T* __restrict__ sorted, Index count, Box<T>* __restrict__ leaves, Index nodes) {
  const Index i = thread_index();
  if (i >= nodes) return;
  const Index last = smaller(count, (i + 1) * kFanOut);
  Box<T> box;
  for (int axis = 0; axis < 3; ++axis) box.low[axis] = box.high[axis] = sorted[3 * size_t(i * kFanOut) + axis];
  for (Index j = i * kFanOut + 1; j < last; ++j) {
    const T* const at = sorted + 3 * size_t(j);
    grow(box, at, at);
  }
  leaves[i] = box;
}

template <typename T>
__global__ void bound_boxes(const Box<T>* __restrict__ below, Index count, Box<T>* __restrict__ above, Index nodes) {
  const Index i = thread_index();
  if (i >= nodes) return;
  const Index last = smaller(count, (i + 1) * kFanOut);
  Box<T> box = below[i * kFanOut];
  for (Index j = i * kFanOut + 1; j < last; ++j) grow(box, below[j].low, below[j].high);
  above[i] = box;
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    mean_of_nearest(const T* __restrict__ sorted, Index count, const int* __restrict__ rows,
                    const Box<T>* __restrict__ boxes, const __grid_constant__ Levels levels, T infinity, T* __restrict__ out) {
  const Index self = thread_index();
  if (self >= count) return;
  const T *const at = sorted + 3 * size_t(self), x = at[0], y = at[1], z = at[2];
  const Box<T> here = {{x, y, z}, {x, y, z}};
  Nearest<T> nearest = {infinity, infinity, infinity};

  const auto scan = [&](Index leaf) {
    const Index last = smaller(count, (leaf + 1) * kFanOut);
    for (Index j = leaf * kFanOut; j < last; ++j) {
      const T* const other = sorted + 3 * size_t(j);
      if (j != self) nearest.insert(squared_norm(x - other[0], y - other[1], z - other[2]));
    }
  };
  scan(self / kFanOut);

  Index own = self / kFanOut;  // the ancestor at `top`
  for (int top = 0; top + 1 < levels.count; ++top, own /= kFanOut) {
    const Index end = smaller(levels.nodes(top), (own / kFanOut + 1) * kFanOut);  // of its siblings
    int level = top;
    Index node = own / kFanOut * kFanOut;
    // Depth first through the siblings' subtrees. A node that is skipped or done passes on to the next of its level,
    // or, where its parent's children end, to the one after its parent.
    while (level < top || node < end) {
      const bool known = level == top && node == own;
      if (!known && squared_distance(here, boxes[levels.start[level] + node]) < nearest.third) {
        if (level > 0) {
          --level;
          node *= kFanOut;
          continue;
        }
        scan(node);
      }
      ++node;
      while (level < top && (node % kFanOut == 0 || node == levels.nodes(level))) {
        node = (node - 1) / kFanOut + 1;
        ++level;
      }
    }
  }

  const int found = int(smaller<Index>(kNeighbours, count - 1));
  T sum = 0;
  if (found > 0) sum += nearest.first;
  if (found > 1) sum += nearest.second;
  if (found > 2) sum += nearest.third;
  out[rows[self]] = found ? sum / T(found) : T(0);
}

template <typename T>
at::Tensor run(const at::Tensor& points) {
  const int64_t rows_given = points.size(0);
  TORCH_CHECK(rows_given <= std::numeric_limits<int>::max(), "simple_knn: ", rows_given,
              " points, expected at most 2^31 - 1");
  const Index count = Index(rows_given);
  at::Tensor out = at::empty({count}, points.options());
  if (!count) return out;
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  const T* xyz = points.const_data_ptr<T>();
  const auto ints = points.options().dtype(at::kInt), longs = points.options().dtype(at::kLong);

  at::Tensor first = at::full({1}, std::numeric_limits<int>::max(), ints);
  launch(find_not_finite<T>, blocks_for(count), kThreads, stream, xyz, count, first.mutable_data_ptr<int>());
  const int64_t row = first.item().toLong();  // the host waits here only: it raises the error
  TORCH_CHECK(row >= count, "simple_knn: point ", row, " is not finite; remove it");

  const auto [low, high] = at::aminmax(points, 0);
  at::Tensor keys = at::empty({2, count}, longs), rows = at::empty({2, count}, ints);
  uint64_t* key = reinterpret_cast<uint64_t*>(keys.mutable_data_ptr<int64_t>());
  int* const row_in = rows.mutable_data_ptr<int>();
  int* const row_out = row_in + count;
  launch(morton_keys<T>, blocks_for(count), kThreads, stream, xyz, count, low.template const_data_ptr<T>(),
         high.template const_data_ptr<T>(), key, row_in);
  size_t bytes = 0;
  const auto sort = [&](void* storage) {
    C10_CUDA_CHECK(cub::DeviceRadixSort::SortPairs(storage, bytes, key, key + count, row_in, row_out, int(count), 0,
                                                   3 * kAxisBits, stream));
  };
  sort(nullptr);
  at::Tensor storage = at::empty({int64_t(bytes)}, points.options().dtype(at::kByte));
  sort(storage.mutable_data_ptr());

  const Levels levels(count);
  at::Tensor sorted = at::empty({count, 3}, points.options());
  at::Tensor boxes = at::empty({levels.start[levels.count], 6}, points.options());
  T* const at_sorted = sorted.mutable_data_ptr<T>();
  static_assert(sizeof(Box<T>) == 6 * sizeof(T));
  Box<T>* const box = reinterpret_cast<Box<T>*>(boxes.mutable_data_ptr<T>());
  launch(gather<T>, blocks_for(count), kThreads, stream, xyz, count, row_out, at_sorted);
  launch(bound_points<T>, blocks_for(levels.nodes(0)), kThreads, stream, at_sorted, count, box, levels.nodes(0));
  for (int level = 1; level < levels.count; ++level) {
    launch(bound_boxes<T>, blocks_for(levels.nodes(level)), kThreads, stream, box + levels.start[level - 1],
           levels.nodes(level - 1), box + levels.start[level], levels.nodes(level));
  }
  launch(mean_of_nearest<T>, blocks_for(count), kThreads, stream, at_sorted, count, row_out, box, levels,
         std::numeric_limits<T>::infinity(), out.mutable_data_ptr<T>());
  return out;
}

at::Tensor mean_squared_distance(const at::Tensor& points) {
  check(points);
  const c10::cuda::CUDAGuard guard(points.device());
  return points.scalar_type() == at::kFloat ? run<float>(points.contiguous()) : run<double>(points.contiguous());
}

}  // namespace
}  // namespace simple_knn

TORCH_LIBRARY_IMPL(simple_knn, CUDA, m) { m.impl("mean_squared_distance", simple_knn::mean_squared_distance); }
