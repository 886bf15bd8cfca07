// CPU driver: a balanced k-d tree, and one walk through it for a packet of neighbouring queries.
//
// The tree is implicit: the points are permuted so that node i of level l holds [N*i >> l, N*(i+1) >> l), split at the
// median of its longest side. So it stays balanced however the points are clustered, and duplicates only make boxes of
// size 0. A packet fills a vector's lanes with points of one leaf; a candidate is measured against all of them at once,
// and a node is skipped when its box is no nearer than the worst third neighbour of the packet.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "../common/nearest.h"
#include "../points.h"
#include "simd.h"

namespace simple_knn {
namespace {

constexpr int64_t kLeafPoints = 16;  // at most; a leaf is then at least half full
constexpr int kTopLevels = 6;            // 64 subtrees keep many cores busy evenly
constexpr int64_t kTaskPoints = 8192;    // about a millisecond

template <typename T>
struct Point {
  T at[3];
  int64_t row;
};

template <typename T>
Box<T> bounds(const Point<T>* points, int64_t count) {
  Box<T> box;
  for (int axis = 0; axis < 3; ++axis) {
    T low = points[0].at[axis], high = low;
    for (int64_t i = 1; i < count; ++i) {
      low = smaller(low, points[i].at[axis]);
      high = larger(high, points[i].at[axis]);
    }
    box.low[axis] = low;
    box.high[axis] = high;
  }
  return box;
}

template <typename T>
class Tree {
  using V = Simd<T>;
  using Vec = typename V::Vec;
  static constexpr int64_t kLanes = V::kLanes;

 public:
  Tree(const T* xyz, int64_t count) : count_(count), points_(count) {
    for (int64_t row = 0; row < count; ++row) points_[row] = {{xyz[3 * row], xyz[3 * row + 1], xyz[3 * row + 2]}, row};
    while ((count + (int64_t(1) << depth_) - 1) >> depth_ > kLeafPoints) ++depth_;
    boxes_.resize((int64_t(2) << depth_) - 1);
    // The first levels one by one, each shared by the threads; below them whole subtrees.
    const int top = std::min(depth_, kTopLevels);
    for (int level = 0; level < top; ++level) {
      const int64_t nodes = int64_t(1) << level;
      at::parallel_for(0, nodes, grain(nodes), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) split(level, i);
      });
    }
    const int64_t subtrees = int64_t(1) << top;
    at::parallel_for(0, subtrees, grain(subtrees), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) build(top, i);
    });
  }

  void mean_squared_distances(T* out) const {
    const int64_t leaves = int64_t(1) << depth_;
    at::parallel_for(0, leaves, grain(leaves), [&](int64_t begin, int64_t end) {
      for (int64_t leaf = begin; leaf < end; ++leaf) {
        for (int64_t i = first(depth_, leaf); i < first(depth_, leaf + 1); i += kLanes) {
          finish_packet(leaf, i, std::min(kLanes, first(depth_, leaf + 1) - i), out);
        }
      }
    });
  }

 private:
  int64_t first(int level, int64_t i) const { return (count_ * i) >> level; }
  Box<T>& box(int level, int64_t i) { return boxes_[(int64_t(1) << level) - 1 + i]; }
  const Box<T>& box(int level, int64_t i) const { return boxes_[(int64_t(1) << level) - 1 + i]; }

  // How many of a level's nodes make a task worth a thread's start.
  int64_t grain(int64_t nodes) const { return std::max<int64_t>(1, kTaskPoints * nodes / std::max<int64_t>(1, count_)); }

  void build(int level, int64_t i) {
    split(level, i);
    if (level == depth_) return;
    build(level + 1, 2 * i);
    build(level + 1, 2 * i + 1);
  }

  void split(int level, int64_t i) {
    Point<T>*from = points_.data() + first(level, i), *to = points_.data() + first(level, i + 1);
    const Box<T> around = box(level, i) = bounds(from, to - from);
    if (level == depth_) return;
    int axis = 0;
    for (int other = 1; other < 3; ++other) {
      if (around.high[other] - around.low[other] > around.high[axis] - around.low[axis]) axis = other;
    }
    std::nth_element(from, points_.data() + first(level + 1, 2 * i + 1), to,
                     [axis](const Point<T>& a, const Point<T>& b) { return a.at[axis] < b.at[axis]; });
  }

  struct Packet {
    Vec x, y, z;
    Box<T> around;
    Nearest<Vec> nearest;

    Vec measure(const Point<T>& p) const { return squared_norm<Vec>(x - p.at[0], y - p.at[1], z - p.at[2]); }
    T worst() const {
      T worst = nearest.third[0];
      for (int64_t lane = 1; lane < kLanes; ++lane) worst = larger<T>(worst, nearest.third[lane]);
      return worst;
    }
  };

  void finish_packet(int64_t leaf, int64_t begin, int64_t queries, T* out) const {
    Packet packet;
    packet.around = bounds(points_.data() + begin, queries);
    for (int64_t lane = 0; lane < kLanes; ++lane) {  // spare lanes repeat the first query
      const Point<T>& p = points_[begin + (lane < queries ? lane : 0)];
      packet.x[lane] = p.at[0], packet.y[lane] = p.at[1], packet.z[lane] = p.at[2];
      packet.nearest.third[lane] = std::numeric_limits<T>::infinity();
    }
    packet.nearest.first = packet.nearest.second = packet.nearest.third;
    for (int64_t i = first(depth_, leaf); i < first(depth_, leaf + 1); ++i) {
      Vec d = packet.measure(points_[i]);
      if (i >= begin && i < begin + queries) d[i - begin] = std::numeric_limits<T>::infinity();  // itself
      packet.nearest.insert(d);
    }
    walk(leaf, packet);
    const int64_t found = std::min<int64_t>(kNeighbours, count_ - 1);
    for (int64_t lane = 0; lane < queries; ++lane) {
      const T distances[3] = {packet.nearest.first[lane], packet.nearest.second[lane], packet.nearest.third[lane]};
      T sum = 0;
      for (int64_t k = 0; k < found; ++k) sum += distances[k];
      out[points_[begin + lane].row] = found ? sum / T(found) : T(0);
    }
  }

  // Visit every leaf but the packet's own that may hold a nearer point, nearest side first.
  void walk(int64_t own_leaf, Packet& packet) const {
    struct Node {
      int level;
      int64_t i;
      T distance;
    };
    Node stack[64];  // one waiting sibling a level
    int waiting = 0;
    stack[waiting++] = {0, 0, T(0)};
    T worst = packet.worst();
    while (waiting) {
      Node node = stack[--waiting];
      if (!(node.distance < worst)) continue;
      while (node.level < depth_) {
        Node near{node.level + 1, 2 * node.i, squared_distance(packet.around, box(node.level + 1, 2 * node.i))};
        Node far{near.level, near.i + 1, squared_distance(packet.around, box(near.level, near.i + 1))};
        if (far.distance < near.distance) std::swap(near, far);
        if (far.distance < worst) stack[waiting++] = far;
        node = near;
        if (!(node.distance < worst)) break;
      }
      if (node.level < depth_ || node.i == own_leaf) continue;
      for (int64_t i = first(depth_, node.i); i < first(depth_, node.i + 1); ++i) {
        packet.nearest.insert(packet.measure(points_[i]));
      }
      worst = packet.worst();
    }
  }

  const int64_t count_;
  int depth_ = 0;
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
  if (count) Tree<T>(xyz, count).mean_squared_distances(out.mutable_data_ptr<T>());
  return out;
}

at::Tensor mean_squared_distance(const at::Tensor& points) {
  check(points);
  return points.scalar_type() == at::kFloat ? run<float>(points.contiguous()) : run<double>(points.contiguous());
}

}  // namespace
}  // namespace simple_knn

TORCH_LIBRARY_IMPL(simple_knn, CPU, m) { m.impl("mean_squared_distance", simple_knn::mean_squared_distance); }
