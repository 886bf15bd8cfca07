// The traversal of the k-d tree, for a packet of neighbouring queries.
//
// The lanes of a vector are queries of one leaf; the distances of a candidate to all of them are computed at once, and
// a node is skipped if its box is no nearer than the farthest third neighbour of the packet.
#pragma once

#include "../../common/nearest.h"
#include "../kernels.h"
#include "simd.h"
#include "standard.h"

namespace simple_knn {
inline namespace SIMPLE_KNN_VARIANT {
namespace {

template <typename T>
class Walker {
  using V = Simd<T>;
  using Vec = typename V::Vec;
  static constexpr int64_t kLanes = V::kLanes;

 public:
  explicit Walker(const Tree<T>& tree) : tree_(tree) {}

  void run(int64_t leaf, T* out) const {
    const int64_t end = tree_.first(tree_.depth, leaf + 1);
    for (int64_t i = tree_.first(tree_.depth, leaf); i < end; i += kLanes) finish_packet(leaf, i, std::min(kLanes, end - i), out);
  }

 private:
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
    packet.around = bounds<T>(tree_.points + begin, queries);
    for (int64_t lane = 0; lane < kLanes; ++lane) {  // spare lanes repeat the first query
      const Point<T>& p = tree_.points[begin + (lane < queries ? lane : 0)];
      packet.x[lane] = p.at[0], packet.y[lane] = p.at[1], packet.z[lane] = p.at[2];
      packet.nearest.third[lane] = std::numeric_limits<T>::infinity();
    }
    packet.nearest.first = packet.nearest.second = packet.nearest.third;
    for (int64_t i = tree_.first(tree_.depth, leaf); i < tree_.first(tree_.depth, leaf + 1); ++i) {
      Vec d = packet.measure(tree_.points[i]);
      if (i >= begin && i < begin + queries) d[i - begin] = std::numeric_limits<T>::infinity();  // itself
      packet.nearest.insert(d);
    }
    walk(leaf, packet);
    const int64_t found = std::min<int64_t>(kNeighbours, tree_.count - 1);
    for (int64_t lane = 0; lane < queries; ++lane) {
      const T distances[3] = {packet.nearest.first[lane], packet.nearest.second[lane], packet.nearest.third[lane]};
      T sum = 0;
      for (int64_t k = 0; k < found; ++k) sum += distances[k];
      out[tree_.points[begin + lane].row] = found ? sum / T(found) : T(0);
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
      while (node.level < tree_.depth) {
        Node near{node.level + 1, 2 * node.i, squared_distance(packet.around, tree_.box(node.level + 1, 2 * node.i))};
        Node far{near.level, near.i + 1, squared_distance(packet.around, tree_.box(near.level, near.i + 1))};
        if (far.distance < near.distance) std::swap(near, far);
        if (far.distance < worst) stack[waiting++] = far;
        node = near;
        if (!(node.distance < worst)) break;
      }
      if (node.level < tree_.depth || node.i == own_leaf) continue;
      for (int64_t i = tree_.first(tree_.depth, node.i); i < tree_.first(tree_.depth, node.i + 1); ++i) {
        packet.nearest.insert(packet.measure(tree_.points[i]));
      }
      worst = packet.worst();
    }
  }

  const Tree<T> tree_;
};

template <typename T>
void mean_of_leaves(const Tree<T>& tree, int64_t begin, int64_t end, T* out) {
  const Walker<T> walker(tree);
  for (int64_t leaf = begin; leaf < end; ++leaf) walker.run(leaf, out);
}

}  // namespace
}  // namespace SIMPLE_KNN_VARIANT

extern const Kernels SIMPLE_KNN_TABLE;
constexpr Kernels SIMPLE_KNN_TABLE{mean_of_leaves<float>, mean_of_leaves<double>};

}  // namespace simple_knn
