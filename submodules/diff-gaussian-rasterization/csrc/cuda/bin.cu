// Binning: Gaussians sorted by depth first, then (tile, Gaussian) pairs by tile alone. The second sort is stable, so
// every list is in depth order; its keys are as short as the number of tiles. Ties in depth keep the order of the
// input.
//
// The tiles of a Gaussian are computed twice, once to count and once to write them, with the same bits: common/tiles.h
// is written so that the compiler cannot round differently. So no footprints are stored for Gaussians that are not
// drawn. They are counted before the sort by depth, where neighbouring threads read neighbouring rows; the sum over ranks
// looks the counts up.
//
// Memory does not depend on this agreement: writing ends where the count does, and what is left of a count is filled with
// pairs of no tile, which sort behind all tiles. With MOMENTUM_GS_CHECK_PAIRS=1 in the environment every call counts
// the Gaussians for which this happened and raises an error; it then waits for the device once more.
//
// With `capacity` for some number of pairs, lists of that capacity are made and drawn from before the host knows how many
// pairs there are: it reads their number late (late.cuh). Where they did not fit, lists are made and drawn from again;
// else they are cut to what was counted. What is returned has the same bits for every `capacity`.
#include "bin.cuh"

#include <ATen/ops/cumsum.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <cub/device/device_radix_sort.cuh>
#include <cub/device/device_scan.cuh>
#include <iterator>
#include <limits>
#include <optional>
#include <type_traits>

#include "../args.h"
#include "late.cuh"

namespace dgr {
namespace {

using at::Tensor;

// Depths sort as their bits do: they are positive. What is not drawn sorts last; no number has its key.
template <class S> using Key = std::conditional_t<sizeof(S) == 4, int32_t, int64_t>;
template <class S> constexpr Key<S> kHidden = std::numeric_limits<Key<S>>::max();

// Gaussians with more pairs than this are written by their whole warp: one thread would keep it waiting.
constexpr int kAlone = 32;

// The count of a rank, except where a test compiles counts that are wrong.
#if defined(DGR_TEST_MISCOUNT)
DGR_HD int64_t miscount(int64_t rank, int64_t count) { return count + DGR_TEST_MISCOUNT(rank, count); }
#else
DGR_HD int64_t miscount(int64_t, int64_t count) { return count; }
#endif

// The counts of Gaussians in the order of ranks, as cub reads them.
struct CountOfRank {
  using iterator_category = std::random_access_iterator_tag;
  using value_type = int64_t;
  using difference_type = int64_t;
  using pointer = const int64_t*;
  using reference = int64_t;
  const int32_t *counts, *ids;
  int64_t rank;

  DGR_HD int64_t operator*() const { return miscount(rank, counts[ids[rank]]); }
  DGR_HD int64_t operator[](int64_t further) const { return *(*this + further); }
  DGR_HD CountOfRank operator+(int64_t further) const { return {counts, ids, rank + further}; }
  DGR_HD CountOfRank& operator++() { return ++rank, *this; }
  DGR_HD bool operator==(const CountOfRank& other) const { return rank == other.rank; }
  DGR_HD bool operator!=(const CountOfRank& other) const { return rank != other.rank; }
};

template <class S> struct Screen {
  const S *means, *conics, *depths, *opacities, *colors;
  int64_t channels;

  // Empty where a color or the depth is NaN or Inf.
  DGR_DEVICE Record<S> header(int64_t g) const {
    Record<S> r;
    make_record(means + 2 * g, conics + 3 * g, opacities[g], r);
    S zero = depths[g] * S(0);
    for (int64_t k = 0; k < channels; ++k) zero += colors[g * channels + k] * S(0);
    if (!(zero == 0)) make_empty(r);
    return r;
  }
};

// Which tiles are drawn.
struct Drawn {
  const int32_t* before;  // [tiles+1] how many of those before each are drawn; null: all of them

  DGR_DEVICE int count_before(int tile) const { return before ? before[tile] : tile; }
};

// counts[g]: drawn tiles that the Gaussian meets. `visible`: is raised by the number of Gaussians that are drawn.
template <class S>
__global__ void __launch_bounds__(kThreads)
    count_tiles(Screen<S> screen, Grid grid, Drawn drawn, const int32_t* __restrict__ radii, int64_t n, Key<S>* __restrict__ keys,
                int32_t* __restrict__ ids, int32_t* __restrict__ counts, unsigned long long* visible) {
  const int64_t g = thread_index();
  const S depth = g < n && radii[g] > 0 ? screen.depths[g] : S(0);
  const bool shown = depth > S(0);
  const int of_block = __syncthreads_count(shown);
  if (threadIdx.x == 0 && of_block) atomicAdd(visible, (unsigned long long)(of_block));  // whole numbers: in any order
  if (g >= n) return;
  Key<S> key = kHidden<S>;
  int count = 0;
  if (shown) {
    memcpy(&key, &depth, sizeof key);
    visit_tiles(screen.header(g), grid, [&](int row, int first, int last) {
      const int line = row * int(grid.columns);
      count += drawn.count_before(line + last + 1) - drawn.count_before(line + first);
    });
  }
  keys[g] = key;
  ids[g] = int32_t(g);
  counts[g] = count;
}

struct Pairs { int32_t *tiles, *ranks, *numbers; };

DGR_DEVICE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// `ends`: behind the last pair of every rank, then the number of ranks. No pair is written from `capacity` on. `wrong`: where
// to count ranks that meet more or fewer tiles than were counted; or null.
template <class S>
__global__ void __launch_bounds__(kThreads)
    write_records(Screen<S> screen, Grid grid, Drawn drawn, const int32_t* __restrict__ ids, const int64_t* __restrict__ ends,
                  int64_t n, int64_t capacity, int64_t stride, S* records, int32_t* __restrict__ order, int32_t* __restrict__ pair_start, Pairs pairs,
                  int32_t* wrong) {
  const int64_t rank = thread_index(), visible = ends[n];
  const int lane = threadIdx.x % kWarp;
  int begin = 0, count = 0;
  if (rank == 0) pair_start[0] = 0;
  const auto write = [&](int number, int tile, int64_t of_rank) {
    pairs.tiles[number] = tile;
    pairs.ranks[number] = int32_t(of_rank);
    pairs.numbers[number] = number;
  };
  // Every `step`th of the tiles of a row; pairs of the row's tiles begin at `at`, and none reaches `end`. Returns where
  // those of the next row begin.
  const auto put = [&](int at, int end, int64_t of_rank, int row, int first, int last, int from, int step) {
    const int line = row * int(grid.columns), skipped = drawn.count_before(line + first);
    for (int tile = line + first + from; tile <= line + last; tile += step) {
      const int before = drawn.count_before(tile), number = at + before - skipped;
      if (drawn.count_before(tile + 1) != before && number < end) write(number, tile, of_rank);
    }
    return at + drawn.count_before(line + last + 1) - skipped;
  };
  // Fills what was counted but not met.
  const auto fill = [&](int at, int end, int64_t of_rank, int from, int step) {
    for (int number = at + from; number < end; number += step) write(number, int(grid.count()), of_rank);
    if (wrong && from == 0 && at != end) atomicAdd(wrong, 1);
  };
  if (rank < visible) {
    const int64_t g = ids[rank];
    Record<S>& r = *reinterpret_cast<Record<S>*>(records + rank * stride);
    r = screen.header(g);
    S* features = r.features();
    for (int64_t k = 0; k < stride - kHeader<S>; ++k)
      features[k] = k < screen.channels ? screen.colors[g * screen.channels + k] : k == screen.channels ? screen.depths[g] : S(0);
    order[rank] = int32_t(g);
    begin = rank ? int(smaller(ends[rank - 1], capacity)) : 0;
    count = int(smaller(ends[rank], capacity)) - begin;
    pair_start[rank + 1] = begin + count;
    if (count <= kAlone) {
      int at = begin;
      visit_tiles(r, grid, [&](int row, int first, int last) { at = put(at, begin + count, rank, row, first, last, 0, 1); });
      fill(at, begin + count, rank, 0, 1);
    }
  }
  unsigned large = __ballot_sync(kAllLanes, count > kAlone);
  __syncwarp();  // the records are written
  while (large) {
    const int owner = __ffs(int(large)) - 1;
    large &= large - 1;
    const int64_t of_rank = rank - lane + owner;
    int at = __shfl_sync(kAllLanes, begin, owner);
    const int end = at + __shfl_sync(kAllLanes, count, owner);
    visit_tiles(*reinterpret_cast<const Record<S>*>(records + of_rank * stride), grid,
                [&](int row, int first, int last) { at = put(at, end, of_rank, row, first, last, lane, kWarp); });
    fill(at, end, of_rank, lane, kWarp);
  }
}

// Capacity that is left behind the last pair holds pairs of no tile.
__global__ void __launch_bounds__(kThreads) fill_rest(const int64_t* __restrict__ ends, int64_t n, int64_t capacity, int32_t no_tile, Pairs pairs) {
  const int64_t number = thread_index();
  if (number >= capacity || number < ends[n - 1]) return;
  pairs.tiles[number] = no_tile;
  pairs.ranks[number] = 0;
  pairs.numbers[number] = int32_t(number);
}

// `lists`: [2,P] for as many pairs as there are, or fit.
__global__ void __launch_bounds__(kThreads)
    gather_ranks(const int32_t* __restrict__ rank_of_pair, const int32_t* __restrict__ numbers, const int64_t* __restrict__ ends, int64_t n,
                 int64_t capacity, int32_t* __restrict__ lists) {
  const int64_t place = thread_index(), pairs = smaller(ends[n - 1], capacity);
  if (place >= pairs) return;
  const int32_t number = numbers[place];
  lists[place] = rank_of_pair[number];
  lists[pairs + place] = number;
}

// The first place whose tile is not before each tile.
__global__ void __launch_bounds__(kThreads)
    find_tiles(const int32_t* __restrict__ sorted, int64_t pairs, int64_t tiles, int32_t* __restrict__ tile_start) {
  const int64_t tile = thread_index();
  if (tile > tiles) return;
  int64_t low = 0, high = pairs;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (sorted[middle] < tile) low = middle + 1;
    else high = middle;
  }
  tile_start[tile] = int32_t(low);
}

// Where write_records counts what it finds wrong: empty unless MOMENTUM_GS_CHECK_PAIRS asks for it.
Tensor wrong_ranks(const at::TensorOptions& ints) {
  const char* asked = std::getenv("MOMENTUM_GS_CHECK_PAIRS");
  return at::zeros({asked && std::strcmp(asked, "1") == 0 ? 1 : 0}, ints);
}

// Calls an algorithm of cub twice: for the size of its storage, and with it.
template <class F> void with_storage(const Tensor& like, const F& call) {
  size_t bytes = 0;
  C10_CUDA_CHECK(call(nullptr, bytes));
  const Tensor storage = at::empty({int64_t(bytes)}, like.options().dtype(at::kByte));
  C10_CUDA_CHECK(call(data<uint8_t>(storage), bytes));
}

template <class K> void sort_pairs(const Tensor& keys, const Tensor& keys_out, const Tensor& values, const Tensor& values_out, int bits) {
  if (keys.numel() == 0) return;
  const auto stream = c10::cuda::getCurrentCUDAStream();
  with_storage(keys, [&](void* storage, size_t& bytes) {
    return cub::DeviceRadixSort::SortPairs(storage, bytes, data<K>(keys), data<K>(keys_out), data<int32_t>(values),
                                           data<int32_t>(values_out), int(keys.numel()), 0, bits, stream);
  });
}

// What lists are made from: Gaussians in depth order, and where the pairs of each end.
template <class S> struct Counted {
  Screen<S> screen;
  Grid grid;
  Tensor before;     // int32 [tiles+1], see Drawn; or undefined
  Tensor ids, ends;  // int32 [n], int64 [n+1]

  int64_t size() const { return ids.numel(); }
  Drawn drawn() const { return {before.defined() ? data<int32_t>(before) : nullptr}; }
};

template <class S>
Counted<S> count(const Screen<S>& screen, const Tensor& depths, const Tensor& radii, const Grid& grid, const std::optional<Tensor>& mask) {
  const int64_t n = depths.numel();
  const auto ints = depths.options().dtype(at::kInt);
  Counted<S> of{screen, grid, {}, at::empty({n}, ints), at::empty({n + 1}, ints.dtype(at::kLong))};
  of.ends.narrow(0, n, 1).zero_();
  if (mask) {
    of.before = at::zeros({grid.count() + 1}, ints);
    Tensor behind = of.before.narrow(0, 1, grid.count());
    at::cumsum_out(behind, mask->reshape({-1}), 0, at::kInt);
  }
  if (n == 0) return of;
  const auto options = ints.dtype(sizeof(S) == 4 ? at::kInt : at::kLong);
  const Tensor keys = at::empty({n}, options), sorted = at::empty({n}, options), unsorted_ids = at::empty({n}, ints);
  const Tensor counts = at::empty({n}, ints);
  launch(count_tiles<S>, blocks_of(n), screen, grid, of.drawn(), data<int32_t>(radii), n, data<Key<S>>(keys), data<int32_t>(unsorted_ids),
         data<int32_t>(counts), reinterpret_cast<unsigned long long*>(data<int64_t>(of.ends) + n));
  sort_pairs<Key<S>>(keys, sorted, unsorted_ids, of.ids, 8 * int(sizeof(S)) - 1);  // no sign
  const CountOfRank of_rank{data<int32_t>(counts), data<int32_t>(of.ids), 0};
  const auto stream = c10::cuda::getCurrentCUDAStream();
  with_storage(of.ends, [&](void* storage, size_t& bytes) {
    return cub::DeviceScan::InclusiveSum(storage, bytes, of_rank, data<int64_t>(of.ends), int(n), stream);
  });
  return of;
}

// For at most `rows` Gaussians and `capacity` pairs.
template <class S> Bins make_lists(const Counted<S>& of, int64_t rows, int64_t capacity, bool exact, const at::TensorOptions& floats, const Tensor& wrong) {
  const int64_t n = of.size(), tiles = of.grid.count(), stride = record_stride<S>(of.screen.channels + 1);
  const auto ints = floats.dtype(at::kInt);
  Bins out{at::empty({rows, stride}, floats), at::empty({rows}, ints), rows ? at::empty({rows + 1}, ints) : at::zeros({1}, ints),
           at::empty({tiles + 1}, ints), at::empty({2, capacity}, ints)};
  const Tensor of_tile = at::empty({capacity}, ints), ranks = at::empty({capacity}, ints), numbers = at::empty({capacity}, ints);
  const Pairs pairs{data<int32_t>(of_tile), data<int32_t>(ranks), data<int32_t>(numbers)};
  launch(write_records<S>, blocks_of(rows), of.screen, of.grid, of.drawn(), data<int32_t>(of.ids), data<int64_t>(of.ends), n, capacity, stride,
         data<S>(out.records), data<int32_t>(out.order), data<int32_t>(out.pair_start), pairs, data<int32_t>(wrong));
  if (!exact) launch(fill_rest, blocks_of(capacity), data<int64_t>(of.ends), n, capacity, int32_t(tiles), pairs);
  const Tensor sorted = at::empty({capacity}, ints), sorted_numbers = at::empty({capacity}, ints);
  int bits = 1;
  while (tiles >= int64_t(1) << bits) ++bits;  // their number itself is the tile of pairs of none
  sort_pairs<int32_t>(of_tile, sorted, numbers, sorted_numbers, bits);
  launch(gather_ranks, blocks_of(capacity), data<int32_t>(ranks), data<int32_t>(sorted_numbers), data<int64_t>(of.ends), n, capacity,
         data<int32_t>(out.lists));
  launch(find_tiles, blocks_of(tiles + 1), data<int32_t>(sorted), capacity, tiles, data<int32_t>(out.tile_start));
  return out;
}

struct Totals { int64_t visible, pairs; };

Totals totals_of(const Tensor& last) {
  const int64_t* const of = last.const_data_ptr<int64_t>();
  check_pairs(of[0]);
  return {of[1], of[0]};
}

}  // namespace

template <class S>
Bins bin(const Tensor& means2d, const Tensor& conics, const Tensor& depths, const Tensor& radii, const Tensor& opacities,
         const Tensor& colors, const Grid& grid, const std::optional<Tensor>& mask, int64_t capacity, const std::function<void(const Bins&)>& draw) {
  const Screen<S> screen{data<S>(means2d), data<S>(conics), data<S>(depths), data<S>(opacities), data<S>(colors), colors.size(1)};
  const Counted<S> counted = count<S>(screen, depths, radii, grid, mask);
  const int64_t n = counted.size();
  const Tensor last = counted.ends.narrow(0, n > 0 ? n - 1 : 0, n > 0 ? 2 : 1);  // the number of pairs, of ranks
  const auto floats = means2d.options();
  Tensor wrong = wrong_ranks(floats.dtype(at::kInt));
  const auto make = [&](int64_t rows, int64_t capacity, bool exact) {
    const Bins lists = make_lists<S>(counted, rows, capacity, exact, floats, wrong);
    draw(lists);
    return lists;
  };
  // There cannot be more; and the numbers of the pairs of a Gaussian that reaches past the capacity stay within int32.
  capacity = std::min({capacity, n * grid.count(), std::numeric_limits<int32_t>::max() - grid.count()});
  Bins out;
  Totals totals{};
  if (n == 0 || capacity <= 0) {
    if (n > 0) totals = totals_of(last.cpu());  // waits until the device has nothing left to do
    out = make(totals.visible, totals.pairs, true);
  } else {
    const Late counts(last);
    out = make(n, capacity, false);
    totals = totals_of(counts.wait());
    if (totals.pairs > capacity) {
      wrong.zero_();
      out = {};  // its memory is free for the next
      out = make(totals.visible, totals.pairs, true);
    } else {
      out.records.resize_({totals.visible, out.records.size(1)});
      out.order.resize_({totals.visible});
      out.pair_start.resize_({totals.visible + 1});
      out.lists.resize_({2, totals.pairs});
    }
  }
  if (wrong.numel()) {
    const int32_t found = *wrong.cpu().const_data_ptr<int32_t>();
    TORCH_CHECK(found == 0, "rasterize: ", found, " of ", totals.visible,
                " Gaussians meet other tiles when they are written than when they were counted");
  }
  return out;
}

template Bins bin<float>(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Grid&,
                         const std::optional<Tensor>&, int64_t, const std::function<void(const Bins&)>&);
template Bins bin<double>(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Grid&,
                          const std::optional<Tensor>&, int64_t, const std::function<void(const Bins&)>&);

}  // namespace dgr
