// The kernels that SSIM and the image loss share: a block of threads for a tile of one channel, blurred along x, then along
// y, in shared memory.
//
// The first kernel gives the tiles' sums of SSIM and, for the gradient, three maps of partial derivatives; the second
// blurs those maps. Between them only the maps go through global memory. Every sum has a fixed order: the result has
// the same bits on every run.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <limits>

#include "../common/ssim.h"

namespace fused_ssim {
namespace {

constexpr int kTileColumns = 32;
constexpr int kThreadRows = 8;
constexpr int kThreads = kTileColumns * kThreadRows;
constexpr int kPaddedColumns = kTileColumns + 2 * kRadius;

// Rows of a tile that a thread finishes, as many as 48 KB of shared memory let: the rows around a tile are shared by
// more pixels, and a thread uses a blurred row for several results.
template <typename T> constexpr int kRowsPerThread = sizeof(T) == 4 ? 4 : 1;
template <typename T> constexpr int kTileRows = kThreadRows * kRowsPerThread<T>;
template <typename T> constexpr int kPaddedRows = kTileRows<T> + 2 * kRadius;

template <typename T>
struct Window {
  T weight[kTaps];
  Window() {
    const auto window = gaussian_window();
    for (int k = 0; k < kTaps; ++k) weight[k] = T(window[k]);
  }
};

struct Tiles {
  int64_t planes;
  int height, width, margin, across, down;

  FUSED_SSIM_HD int64_t count() const { return planes * across * down; }
};

// Of images whose last dimensions are height and width.
template <typename T>
Tiles tiles_of(const at::Tensor& images, int margin) {
  const int64_t largest = std::numeric_limits<int>::max(), height = images.size(-2), width = images.size(-1);
  TORCH_CHECK(height <= largest - kTileRows<T> && width <= largest - kTileColumns, "fused_ssim: images of shape ",
              images.sizes(), " are too large, expected sides below 2^31");
  const Tiles tiles{images.numel() / (height * width), int(height), int(width), margin,
                    int((width + kTileColumns - 1) / kTileColumns), int((height + kTileRows<T> - 1) / kTileRows<T>)};
  TORCH_CHECK(tiles.count() <= largest, "fused_ssim: images of shape ", images.sizes(), " have ", tiles.count(),
              " tiles, expected at most 2^31 - 1");
  return tiles;
}

// A block's tile: its plane and its first pixel.
struct Tile {
  int64_t offset;
  int top, left;

  template <typename T>
  static __device__ Tile of_block(const Tiles& tiles) {
    const unsigned index = blockIdx.x, across = tiles.across, down = tiles.down;
    return {int64_t(index / (across * down)) * tiles.height * tiles.width, int(index / across % down) * kTileRows<T>,
            int(index % across) * kTileColumns};
  }
};

// What the image loss has besides: [H,W], the same for all planes, or null for ones, and the sum of their products in one
// plane, or null for the number of pixels.
template <typename T>
struct Counts {
  const T *weights, *mask;
  const double* total;

  // Where it is zero v does not count, even if it is NaN.
  static __device__ T times(T weight, T v) { return weight == T(0) ? T(0) : weight * v; }
  __device__ T masked(int64_t at, T v) const { return mask ? times(mask[at], v) : v; }
  __device__ T weighted(int64_t at, T v) const { return weights ? times(weights[at], v) : v; }
  __device__ ImageTerms terms(const Tiles& tiles, double dssim) const {
    return {double(tiles.planes), total ? *total : double(tiles.height) * tiles.width, dssim};
  }
};

template <typename T>
__device__ T sign(T v) {
  return T((v > T(0)) - (v < T(0)));
}

// One image around a tile, by the mask if there is one. Nothing, that is zero, outside the image and in its outer `margin`
// pixels.
template <typename T>
__device__ void load(const T* __restrict__ plane, const Tiles& tiles, const Tile& tile, int margin,
                     T (&to)[kPaddedRows<T>][kPaddedColumns], const T* __restrict__ mask = nullptr) {
  for (int i = threadIdx.x; i < kPaddedRows<T> * kPaddedColumns; i += kThreads) {
    const int row = i / kPaddedColumns, column = i % kPaddedColumns;
    const int y = tile.top + row - kRadius, x = tile.left + column - kRadius;
    const bool inside = y >= margin && y < tiles.height - margin && x >= margin && x < tiles.width - margin;
    const int64_t at = int64_t(y) * tiles.width + x;
    to[row][column] = !inside ? T(0) : mask ? Counts<T>::times(mask[at], plane[at]) : plane[at];
  }
}

// Blur along y for this thread's rows of one column: rows[r] = sum of weight[k] * from[first + r + k].
template <typename T>
__device__ void blur_columns(const Window<T>& window, const T (&from)[kPaddedRows<T>][kTileColumns], int first, int column,
                             T (&rows)[kRowsPerThread<T>]) {
#pragma unroll
  for (int r = 0; r < kRowsPerThread<T>; ++r) rows[r] = T(0);
#pragma unroll
  for (int k = 0; k < kTaps + kRowsPerThread<T> - 1; ++k) {
    const T value = from[first + k][column];
#pragma unroll
    for (int r = 0; r < kRowsPerThread<T>; ++r) {
      if (k >= r && k - r < kTaps) rows[r] += window.weight[k - r] * value;
    }
  }
}

// The sum of a block's values, in thread 0. Every call of a kernel needs shared memory of its own: another kCall.
template <int kCall>
__device__ double block_sum(double value) {
  __shared__ double warp_sums[kThreads / 32];
  for (int by = 16; by > 0; by /= 2) value += __shfl_down_sync(0xffffffffu, value, by);
  if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = value;
  __syncthreads();
  value = 0;
  if (threadIdx.x == 0) {
    for (int warp = 0; warp < kThreads / 32; ++warp) value += warp_sums[warp];
  }
  return value;
}

// Where the weight is zero the pixel does not count, even if its SSIM is NaN.
template <typename T>
__device__ Ssim<T> by_weight(T weight, const Ssim<T>& s) {
  if (weight == T(0)) return {T(0), T(0), T(0), T(0)};
  return {weight * s.value, weight * s.d_m1, weight * s.d_squares, weight * s.d_s12};
}

// The tiles' sums of SSIM; with kTrain also the maps of d_m1, d_squares and d_s12, one after the other. All of them by the
// weights of their pixels, unless those are null. With kLoss also the sums of absolute differences.
template <typename T, bool kTrain, bool kLoss = false>
__global__ void __launch_bounds__(kThreads)
    tile_sums(const T* __restrict__ img1, const T* __restrict__ img2, const T* __restrict__ weights, const Tiles tiles,
              const Window<T> window, double* __restrict__ sums, T* __restrict__ partials, const T* __restrict__ mask,
              double* __restrict__ distances) {
  __shared__ T x[kPaddedRows<T>][kPaddedColumns], y[kPaddedRows<T>][kPaddedColumns];
  __shared__ T blurred[4][kPaddedRows<T>][kTileColumns];
  const Tile tile = Tile::of_block<T>(tiles);
  const int column = threadIdx.x % kTileColumns, first = threadIdx.x / kTileColumns * kRowsPerThread<T>;
  load(img1 + tile.offset, tiles, tile, 0, x, kLoss ? mask : nullptr);
  load(img2 + tile.offset, tiles, tile, 0, y, kLoss ? mask : nullptr);
  __syncthreads();
  for (int row = threadIdx.x / kTileColumns; row < kPaddedRows<T>; row += kThreadRows) {
    T m1 = 0, m2 = 0, s11 = 0, s22 = 0, s12 = 0;
#pragma unroll
    for (int k = 0; k < kTaps; ++k) {
      const T a = x[row][column + k], b = y[row][column + k];
      const T wa = window.weight[k] * a, wb = window.weight[k] * b;
      m1 += wa;
      m2 += wb;
      s11 += wa * a;
      s22 += wb * b;
      s12 += wa * b;
    }
    blurred[0][row][column] = m1;
    blurred[1][row][column] = m2;
    blurred[2][row][column] = s11 + s22;  // symmetric in the images
    blurred[3][row][column] = s12;
  }
  __syncthreads();
  T moments[4][kRowsPerThread<T>];
#pragma unroll
  for (int i = 0; i < 4; ++i) blur_columns(window, blurred[i], first, column, moments[i]);

  const int64_t map = tiles.planes * tiles.height * tiles.width;
  const int at_x = tile.left + column;
  double sum = 0, distance = 0;
#pragma unroll
  for (int r = 0; r < kRowsPerThread<T>; ++r) {
    const int at_y = tile.top + first + r;
    if (at_x < tiles.margin || at_x >= tiles.width - tiles.margin || at_y < tiles.margin ||
        at_y >= tiles.height - tiles.margin) {
      continue;
    }
    Ssim<T> s = ssim<T>(Moments<T>{moments[0][r], moments[1][r], moments[2][r], moments[3][r]});
    T apart = T(0);
    if constexpr (kLoss) apart = fabs(x[first + r + kRadius][column + kRadius] - y[first + r + kRadius][column + kRadius]);
    if (weights) {
      const T weight = weights[int64_t(at_y - tiles.margin) * (tiles.width - 2 * tiles.margin) + at_x - tiles.margin];
      s = by_weight(weight, s);
      if constexpr (kLoss) apart = Counts<T>::times(weight, apart);
    }
    sum += double(s.value);
    if constexpr (kLoss) distance += double(apart);
    if constexpr (kTrain) {
      T* const pixel = partials + tile.offset + int64_t(at_y) * tiles.width + at_x;
      pixel[0] = s.d_m1;
      pixel[map] = s.d_squares;
      pixel[2 * map] = s.d_s12;
    }
  }
  sum = block_sum<0>(sum);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
  if constexpr (kLoss) {
    distance = block_sum<1>(distance);
    if (threadIdx.x == 0) distances[blockIdx.x] = distance;
  }
}

// d mean / d x = w*d_m1 + 2 x (w*d_squares) + y (w*d_s12), the window being its own mirror image. With kLoss that of the sum
// of the image loss's terms.
template <typename T, bool kLoss = false>
__global__ void __launch_bounds__(kThreads)
    gradient(const T* __restrict__ img1, const T* __restrict__ img2, const T* __restrict__ partials, const Tiles tiles,
             const Window<T> window, T scale, const double* __restrict__ total, T* __restrict__ grad, const Counts<T> counts,
             double dssim) {
  __shared__ T around[kPaddedRows<T>][kPaddedColumns];
  __shared__ T blurred[kPaddedRows<T>][kTileColumns];
  const Tile tile = Tile::of_block<T>(tiles);
  const int column = threadIdx.x % kTileColumns, first = threadIdx.x / kTileColumns * kRowsPerThread<T>;
  const int64_t map = tiles.planes * tiles.height * tiles.width;
  T moved[3][kRowsPerThread<T>];
#pragma unroll
  for (int i = 0; i < 3; ++i) {
    // Writing `around` needs no barrier of its own: it was last read before the one below.
    load(partials + i * map + tile.offset, tiles, tile, tiles.margin, around);
    __syncthreads();
    for (int row = threadIdx.x / kTileColumns; row < kPaddedRows<T>; row += kThreadRows) {
      T sum = 0;
#pragma unroll
      for (int k = 0; k < kTaps; ++k) sum += window.weight[k] * around[row][column + k];
      blurred[row][column] = sum;
    }
    __syncthreads();
    blur_columns(window, blurred, first, column, moved[i]);
  }
  if (total) scale = *total == 0 ? T(0) : T(1) / T(double(tiles.planes) * *total);
  T slope = T(0);
  if constexpr (kLoss) {
    const ImageTerms terms = counts.terms(tiles, dssim);
    scale = T(-terms.by_ssim);
    slope = T(terms.by_distance);
  }
  const int at_x = tile.left + column;
#pragma unroll
  for (int r = 0; r < kRowsPerThread<T>; ++r) {
    const int at_y = tile.top + first + r;
    if (at_x >= tiles.width || at_y >= tiles.height) continue;
    const int64_t at = int64_t(at_y) * tiles.width + at_x, pixel = tile.offset + at;
    if constexpr (kLoss) {
      const T a = counts.masked(at, img1[pixel]), b = counts.masked(at, img2[pixel]);
      const T by_ssim = scale * (moved[0][r] + T(2) * a * moved[1][r] + b * moved[2][r]);
      grad[pixel] = counts.masked(at, by_ssim + counts.weighted(at, slope * sign(a - b)));
      continue;
    }
    grad[pixel] = scale * (moved[0][r] + T(2) * img1[pixel] * moved[1][r] + img2[pixel] * moved[2][r]);
  }
}

}  // namespace
}  // namespace fused_ssim
