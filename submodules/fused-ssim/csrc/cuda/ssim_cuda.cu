// CUDA driver: a block of threads for a tile of one channel, blurred along x, then along y, in shared memory.
//
// The first kernel gives the tiles' sums of SSIM and, for the gradient, three maps of partial derivatives; the second
// blurs those maps. Between them only the maps go through global memory. Every sum has a fixed order: the result has
// the same bits on every run.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/sum.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <limits>
#include <tuple>

#include "../common/ssim.h"
#include "../images.h"
#include "launch.h"

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

  int64_t count() const { return planes * across * down; }
};

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

// One image around a tile. Nothing, that is zero, outside the image and in its outer `margin` pixels.
template <typename T>
__device__ void load(const T* __restrict__ plane, const Tiles& tiles, const Tile& tile, int margin,
                     T (&to)[kPaddedRows<T>][kPaddedColumns]) {
  for (int i = threadIdx.x; i < kPaddedRows<T> * kPaddedColumns; i += kThreads) {
    const int row = i / kPaddedColumns, column = i % kPaddedColumns;
    const int y = tile.top + row - kRadius, x = tile.left + column - kRadius;
    const bool inside = y >= margin && y < tiles.height - margin && x >= margin && x < tiles.width - margin;
    to[row][column] = inside ? plane[int64_t(y) * tiles.width + x] : T(0);
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

// The sum of a block's values, in thread 0. Every call needs shared memory of its own.
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
// weights of their pixels, unless those are null.
template <typename T, bool kTrain>
__global__ void __launch_bounds__(kThreads)
    tile_sums(const T* __restrict__ img1, const T* __restrict__ img2, const T* __restrict__ weights, const Tiles tiles,
              const Window<T> window, double* __restrict__ sums, T* __restrict__ partials) {
  __shared__ T x[kPaddedRows<T>][kPaddedColumns], y[kPaddedRows<T>][kPaddedColumns];
  __shared__ T blurred[4][kPaddedRows<T>][kTileColumns];
  const Tile tile = Tile::of_block<T>(tiles);
  const int column = threadIdx.x % kTileColumns, first = threadIdx.x / kTileColumns * kRowsPerThread<T>;
  load(img1 + tile.offset, tiles, tile, 0, x);
  load(img2 + tile.offset, tiles, tile, 0, y);
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
  double sum = 0;
#pragma unroll
  for (int r = 0; r < kRowsPerThread<T>; ++r) {
    const int at_y = tile.top + first + r;
    if (at_x < tiles.margin || at_x >= tiles.width - tiles.margin || at_y < tiles.margin ||
        at_y >= tiles.height - tiles.margin) {
      continue;
    }
    Ssim<T> s = ssim<T>(Moments<T>{moments[0][r], moments[1][r], moments[2][r], moments[3][r]});
    if (weights) {
      const T weight = weights[int64_t(at_y - tiles.margin) * (tiles.width - 2 * tiles.margin) + at_x - tiles.margin];
      s = by_weight(weight, s);
    }
    sum += double(s.value);
    if constexpr (kTrain) {
      T* const pixel = partials + tile.offset + int64_t(at_y) * tiles.width + at_x;
      pixel[0] = s.d_m1;
      pixel[map] = s.d_squares;
      pixel[2 * map] = s.d_s12;
    }
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// One block: the mean, from the tiles' sums. `total`: that of a plane's weights, which then takes the place of
// `pixels`, the number of a plane's pixels in the mean; or null.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    mean_of_sums(const double* __restrict__ sums, int64_t tiles, double planes, double pixels,
                 const double* __restrict__ total, T* __restrict__ mean) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < tiles; i += kThreads) sum += sums[i];
  sum = block_sum(sum);
  if (threadIdx.x != 0) return;
  const double count = planes * (total ? *total : pixels);
  *mean = count == 0 ? T(1) : T(sum / count);  // nothing differs where nothing counts
}

// d mean / d x = w*d_m1 + 2 x (w*d_squares) + y (w*d_s12), the window being its own mirror image.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    gradient(const T* __restrict__ img1, const T* __restrict__ img2, const T* __restrict__ partials, const Tiles tiles,
             const Window<T> window, T scale, const double* __restrict__ total, T* __restrict__ grad) {
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
  const int at_x = tile.left + column;
#pragma unroll
  for (int r = 0; r < kRowsPerThread<T>; ++r) {
    const int at_y = tile.top + first + r;
    if (at_x >= tiles.width || at_y >= tiles.height) continue;
    const int64_t pixel = tile.offset + int64_t(at_y) * tiles.width + at_x;
    grad[pixel] = scale * (moved[0][r] + T(2) * img1[pixel] * moved[1][r] + img2[pixel] * moved[2][r]);
  }
}

template <typename T>
at::Tensor run_as(const at::Tensor& x, const at::Tensor& y, bool valid, const Weights& weights, at::Tensor* grad) {
  const int64_t largest = std::numeric_limits<int>::max();
  TORCH_CHECK(x.size(2) <= largest - kTileRows<T> && x.size(3) <= largest - kTileColumns, "fused_ssim: images of shape ",
              x.sizes(), " are too large, expected sides below 2^31");
  const int height = int(x.size(2)), width = int(x.size(3));
  const Tiles tiles{x.size(0) * x.size(1), height, width, valid ? kRadius : 0,
                    (width + kTileColumns - 1) / kTileColumns, (height + kTileRows<T> - 1) / kTileRows<T>};
  TORCH_CHECK(tiles.count() <= largest, "fused_ssim: images of shape ", x.sizes(), " have ", tiles.count(),
              " tiles, expected at most 2^31 - 1");
  const double planes = double(tiles.planes), pixels = double(height - 2 * tiles.margin) * (width - 2 * tiles.margin);
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  const Window<T> window;
  const T *img1 = x.const_data_ptr<T>(), *img2 = y.const_data_ptr<T>();
  // The total stays on the device: the host does not wait for it.
  const at::Tensor w = weights ? weights->contiguous() : at::Tensor(), sum = weights ? at::sum(w, at::kDouble) : at::Tensor();
  const T* const weight = weights ? w.const_data_ptr<T>() : nullptr;
  const double* const total = weights ? sum.const_data_ptr<double>() : nullptr;
  at::Tensor mean = at::empty({}, x.options());
  at::Tensor sums = at::empty({tiles.count()}, x.options().dtype(at::kDouble));
  double* const tile_sum = sums.mutable_data_ptr<double>();
  if (grad) {
    at::Tensor maps = at::empty({3, tiles.planes, height, width}, x.options());
    T* const partials = maps.mutable_data_ptr<T>();
    *grad = at::empty_like(x);
    launch(tile_sums<T, true>, tiles.count(), kThreads, stream, img1, img2, weight, tiles, window, tile_sum, partials);
    launch(gradient<T>, tiles.count(), kThreads, stream, img1, img2, partials, tiles, window, T(1 / (planes * pixels)), total,
           grad->mutable_data_ptr<T>());
  } else {
    launch(tile_sums<T, false>, tiles.count(), kThreads, stream, img1, img2, weight, tiles, window, tile_sum, nullptr);
  }
  launch(mean_of_sums<T>, 1, kThreads, stream, tile_sum, tiles.count(), planes, pixels, total,
         mean.mutable_data_ptr<T>());
  return mean;
}

at::Tensor run(const at::Tensor& img1, const at::Tensor& img2, bool valid, const Weights& weights, at::Tensor* grad) {
  check(img1, img2, valid, weights);
  const c10::cuda::CUDAGuard guard(img1.device());
  const at::Tensor x = img1.contiguous(), y = img2.contiguous();
  return x.scalar_type() == at::kFloat ? run_as<float>(x, y, valid, weights, grad)
                                       : run_as<double>(x, y, valid, weights, grad);
}

at::Tensor mean_ssim(const at::Tensor& img1, const at::Tensor& img2, bool valid, const Weights& weights) {
  return run(img1, img2, valid, weights, nullptr);
}

std::tuple<at::Tensor, at::Tensor> mean_ssim_with_grad(const at::Tensor& img1, const at::Tensor& img2, bool valid,
                                                       const Weights& weights) {
  at::Tensor grad;
  at::Tensor mean = run(img1, img2, valid, weights, &grad);
  return {mean, grad};
}

}  // namespace
}  // namespace fused_ssim

TORCH_LIBRARY_IMPL(fused_ssim, CUDA, m) {
  m.impl("mean_ssim", fused_ssim::mean_ssim);
  m.impl("mean_ssim_with_grad", fused_ssim::mean_ssim_with_grad);
}
