// From visible Gaussians to the list of every tile, front to back.
//
// One sort of the Gaussians by depth, then a counting sort of (tile, Gaussian) pairs that keeps that order. Ranks are
// positions in depth order; ties keep the order of the input. Invariant: the result does not depend on the threads.
#pragma once

#include <algorithm>
#include <cstring>
#include <numeric>
#include <utility>
#include <vector>

#include "../args.h"
#include "team.h"
#include "kernels/tiles.h"

namespace dgr {

// Gaussians of one task in the passes below. Tasks, not threads, own the buffers; their number is bounded. A task of
// kMinTask takes some hundred microseconds, of the light passes some ten, which is what it costs to wake a thread.
constexpr int64_t kMinTask = 4096;
constexpr int64_t kMinLightTask = 32768;
constexpr int64_t kMaxTasks = 32;

struct Tasks {
  int64_t items, size, count;
  explicit Tasks(int64_t n, int64_t smallest = kMinTask)
      : items(n), size(std::max(smallest, (n + kMaxTasks - 1) / kMaxTasks)), count((n + size - 1) / size) {}
  template <class F> void run(const F& f) const {
    cpu_team::parallel_items(count, [&](int64_t t) { f(t, t * size, std::min(items, (t + 1) * size)); });
  }
};

// Indices of the Gaussians with keep(g), in order.
template <class Keep> std::vector<int32_t> compact(int64_t n, const Keep& keep) {
  const Tasks tasks(n, kMinLightTask);
  std::vector<int64_t> start(tasks.count + 1, 0);
  tasks.run([&](int64_t t, int64_t begin, int64_t end) {
    int64_t kept = 0;
    for (int64_t g = begin; g < end; ++g) kept += keep(g);
    start[t + 1] = kept;
  });
  std::partial_sum(start.begin(), start.end(), start.begin());
  std::vector<int32_t> out(start.back());
  tasks.run([&](int64_t t, int64_t begin, int64_t end) {
    // Written whether kept or not: which ones are cannot be predicted. It ends behind the last that is.
    int32_t *to = out.data() + start[t], *const last = out.data() + start[t + 1];
    for (int64_t g = begin; to < last; ++g) {
      *to = int32_t(g);
      to += keep(g);
    }
  });
  return out;
}

// Stable sort by depth. Positive floats sort as their bits do: radix sort with 11 bit digits.
inline void sort_by_depth(std::vector<int32_t>& ids, const float* depths) {
  constexpr int kBits = 11, kDigits = 1 << kBits;
  struct Item { uint32_t key; int32_t id; };
  const int64_t n = int64_t(ids.size());
  std::vector<Item> from(n), to(n);
  const Tasks tasks(n, kMinLightTask);
  tasks.run([&](int64_t, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      std::memcpy(&from[i].key, depths + ids[i], 4);
      from[i].id = ids[i];
    }
  });
  std::vector<int32_t> cursor(tasks.count * kDigits);
  for (int shift = 0; shift < 32; shift += kBits) {
    const auto digit = [shift](const Item& item) { return (item.key >> shift) & (kDigits - 1); };
    tasks.run([&](int64_t t, int64_t begin, int64_t end) {
      int32_t* count = cursor.data() + t * kDigits;
      std::fill(count, count + kDigits, 0);
      for (int64_t i = begin; i < end; ++i) ++count[digit(from[i])];
    });
    int32_t sum = 0;
    for (int d = 0; d < kDigits; ++d)
      for (int64_t t = 0; t < tasks.count; ++t) sum += std::exchange(cursor[t * kDigits + d], sum);
    tasks.run([&](int64_t t, int64_t begin, int64_t end) {
      int32_t* at = cursor.data() + t * kDigits;
      for (int64_t i = begin; i < end; ++i) to[at[digit(from[i])]++] = from[i];
    });
    from.swap(to);
  }
  for (int64_t i = 0; i < n; ++i) ids[i] = from[i].id;
}

// Double is for checking gradients and need not be fast.
inline void sort_by_depth(std::vector<int32_t>& ids, const double* depths) {
  std::stable_sort(ids.begin(), ids.end(), [depths](int32_t a, int32_t b) { return depths[a] < depths[b]; });
}

struct PairCounts {
  std::vector<int32_t> pair_start;            // [V+1] first pair of each rank: pairs of one Gaussian are neighbours
  std::vector<int32_t> tile_start;            // [tiles+1] first pair of each tile in list order
  std::vector<std::vector<int32_t>> tiles;    // by task: the tile of every pair, in rank order
  std::vector<int32_t> cursor;                // [task, tile] where the task writes its next pair of the tile
  int64_t pairs = 0;
};

// `list(begin, end, tiles, count_of_tile, count_of_rank)` is the kernel list_tiles.
template <class List> PairCounts count_pairs(int64_t visible, const TileGrid& grid, const List& list) {
  const Tasks tasks(visible);
  PairCounts out;
  out.pair_start.assign(visible + 1, 0);
  out.tile_start.assign(grid.count() + 1, 0);
  out.tiles.resize(tasks.count);
  out.cursor.assign(tasks.count * grid.count(), 0);
  tasks.run([&](int64_t t, int64_t begin, int64_t end) {
    out.tiles[t].reserve((end - begin) * 4);
    list(begin, end, out.tiles[t], out.cursor.data() + t * grid.count(), out.pair_start.data() + 1);
  });
  for (const auto& tiles : out.tiles) out.pairs += int64_t(tiles.size());
  check_pairs(out.pairs);
  std::partial_sum(out.pair_start.begin(), out.pair_start.end(), out.pair_start.begin());
  int32_t sum = 0;
  for (int64_t tile = 0; tile < grid.count(); ++tile) {
    out.tile_start[tile] = sum;
    for (int64_t t = 0; t < tasks.count; ++t) sum += std::exchange(out.cursor[t * grid.count() + tile], sum);
  }
  out.tile_start[grid.count()] = sum;
  return out;
}

// Writes the lists: at every place of a tile's list the rank; and for every pair, numbered rank by rank, its place.
inline void fill_lists(PairCounts& counts, int64_t visible, int64_t tiles_of_grid, int32_t* ranks, int32_t* places) {
  Tasks(visible).run([&](int64_t t, int64_t begin, int64_t end) {
    int32_t* cursor = counts.cursor.data() + t * tiles_of_grid;
    const int32_t* tile = counts.tiles[t].data();
    for (int64_t rank = begin; rank < end; ++rank)
      for (int32_t pair = counts.pair_start[rank]; pair < counts.pair_start[rank + 1]; ++pair) {
        const int32_t place = cursor[*tile++]++;
        ranks[place] = int32_t(rank);
        places[pair] = place;
      }
  });
}

}  // namespace dgr
