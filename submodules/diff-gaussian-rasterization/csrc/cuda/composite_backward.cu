// Driver of common/blend.h, backward: the same order as forward, front to back, in batches of records.
//
// Summing the gradients of a Gaussian over the pixels of a warp by shuffles would take five steps for each of ten
// values. Instead a warp transposes the data. With one lane for each pixel it computes the two numbers from which all
// gradients follow, the gradient v of ln alpha and the weight, and writes them to shared memory for kSlots Gaussians;
// then with one lane for each Gaussian it adds the pixels in registers.
//
// Deterministic: a warp adds its pixels, a block its warps, in a fixed order; the block writes the sum to the row of
// the (tile, Gaussian) pair, which is its own; a second kernel adds the rows of each Gaussian in the order of its
// pairs. No atomics, so nothing depends on which block comes first.
//
// A pair that no pixel takes, being behind what is opaque, has no row: a byte for each pair says which were written, so
// that nobody clears, fills or reads the others.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include <optional>
#include <tuple>
#include <type_traits>

#include "../args.h"
#include "../common/blend.h"
#include "longest.cuh"
#include "tiles.cuh"

namespace dgr {
namespace {

using at::Tensor;
using OptTensor = std::optional<Tensor>;

// Sums over pixels of v, v dx, v dy, v dx dx, v dx dy, v dy dy.
constexpr int kMoments = 6;
// Scalars of a pair: moments, then the gradient of N features.
template <int N> constexpr int kPairRow = kMoments + N;

// Sizes that leave room in shared memory for four blocks of a multiprocessor (three with eight features).
template <class S> constexpr int kVjpBatch = kIsSmall<S> ? 32 : 16;
template <class S> constexpr int kSlots = kIsSmall<S> ? 8 : 4;

// What a warp writes for the transposition: [slot][pixel]. Rows are 2 more than the pixels, so that the slots x parts
// that read at once lie in different banks.
template <class S> struct alignas(2 * sizeof(S)) Share { S v, weight; };
constexpr int kShareRow = kWarp + 2;

template <class S> struct PictureGrads { const S *image, *alpha, *depth; };  // null: no gradient

// blockIdx.x: place in `tiles`, which says which tile; blockIdx.y: chunk of N features. `rows`: [chunks, pairs,
// kPairRow]; `written`: [chunks, pairs], zeros; `background_rows`: [tiles, chunks, N].
template <class S, int N>
__global__ void __launch_bounds__(kThreads, sizeof(S) == 8 ? 1 : N <= 4 ? 4 : 3)
    draw_vjp_kernel(Lists<S> lists, const int32_t* __restrict__ tiles, const int32_t* __restrict__ numbers, int64_t pairs, Grid grid,
                    int channels, int features, PictureGrads<S> images, PictureGrads<S> grads, S* __restrict__ rows,
                    uint8_t* __restrict__ written, S* __restrict__ background_rows) {
  constexpr int kSize = kVjpBatch<S>, kRow = kPairRow<N>, kParts = kWarp / kSlots<S>;  // lanes that share a Gaussian
  static_assert(kPatchWidth % kParts == 0);
  __shared__ Batch<S, N, kSize> batch;
  __shared__ Share<S> shares[kWarps][kSlots<S>][kShareRow];
  __shared__ __align__(16) S pixel_grads[kWarps][kWarp][N];
  __shared__ S warp_sums[kWarps][kSize][kRow];
  __shared__ unsigned warp_hits[kWarps];
  const int tile = tiles[blockIdx.x];
  const Place place(grid, tile);
  const int chunk = blockIdx.y, warp = place.warp, lane = place.lane;
  const int64_t area = grid.width * grid.height, pixel = place.pixel;
  // Within the lists, whatever they are called with.
  const auto place_of = [&](int64_t of_tile) {
    const int64_t place = lists.tile_start[of_tile];
    return uint32_t(place < 0 ? 0 : place < pairs ? place : pairs);
  };
  const uint32_t end = place_of(tile + 1);
  uint32_t from = place_of(tile);

  // <gradient, pixel>: what is still to come, in front of the first Gaussian.
  S rest = 0, alpha = 0, alpha_grad = 0, grad[N] = {};
  if (place.inside) {
    alpha = images.alpha[pixel];
    if (grads.alpha && chunk == 0) alpha_grad = grads.alpha[pixel];
    rest = alpha_grad * alpha;
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const int feature = chunk * N + k;
      const bool is_depth = feature == channels;
      const S* of = is_depth ? grads.depth : grads.image;
      if (feature >= features || !of) continue;
      const int64_t at = is_depth ? pixel : feature * area + pixel;
      grad[k] = of[at];
      rest += grad[k] * (is_depth ? images.depth : images.image)[at];
    }
  }
#pragma unroll
  for (int k = 0; k < N; ++k) {
    pixel_grads[warp][lane][k] = grad[k];
    const S total = warp_sum(grad[k] * (S(1) - alpha));
    if (lane == 0) warp_sums[warp][0][k] = total;
  }
  __syncthreads();
  if (threadIdx.x < N) {
    S total = 0;
    for (int w = 0; w < kWarps; ++w) total += warp_sums[w][0][threadIdx.x];
    background_rows[(int64_t(tile) * gridDim.y + chunk) * N + threadIdx.x] = total;
  }

  rows += int64_t(chunk) * pairs * kRow;
  written += int64_t(chunk) * pairs;
  S t = place.inside ? S(1) : S(-1);
  auto next = batch.fetch(lists, from, end, chunk);
  for (; from < end; from += kSize) {
    if (!__syncthreads_or(t > S(0))) break;  // also: the batch before is done with
    batch.put(next);
    __syncthreads();
    next = batch.fetch(lists, from + kSize, end, chunk);
    unsigned hits = 0;
    if (__any_sync(kAllLanes, t > S(0)))
      hits = __ballot_sync(kAllLanes, lane < kSize && from + lane < end && place.meets(batch.record(lane % kSize)));
    if (lane == 0) warp_hits[warp] = hits;
    while (hits) {
      int mine = -1;  // the Gaussian whose pixels this lane will add up
      for (int slot = 0; slot < kSlots<S> && hits; ++slot) {
        const int i = __ffs(int(hits)) - 1;
        hits &= hits - 1;
        if (lane % kSlots<S> == slot) mine = i;
        const Record<S>& r = batch.record(i);
        const S dx = S(place.x) + S(0.5) - r.x, dy = S(place.y) + S(0.5) - r.y;
        const S* feature = r.features();
        S color_grad = alpha_grad, weight;
#pragma unroll
        for (int k = 0; k < N; ++k) color_grad += pixel_grads[warp][lane][k] * feature[k];
        const S v = blend_vjp(opacity_at(exponent(r.a, row_terms(r.log_opacity, r.b, r.c, dy), dx)), color_grad, t, rest, weight);
        shares[warp][slot][lane] = {v, weight};
      }
      __syncwarp();
      S sums[kRow] = {};
      const int part = lane / kSlots<S>;
      if (mine >= 0) {
        const Record<S>& r = batch.record(mine);
        const S x = S(place.left + part) + S(0.5) - r.x, y = S(place.top) + S(0.5) - r.y;
#pragma unroll 4
        for (int step = 0; step < kWarp; step += kParts) {
          const int at = step + part;
          const Share<S> share = shares[warp][lane % kSlots<S>][at];
          const S dx = S(step % kPatchWidth) + x, dy = S(step / kPatchWidth) + y;
          const S vdx = share.v * dx, vdy = share.v * dy;
          sums[0] += share.v;
          sums[1] += vdx;
          sums[2] += vdy;
          sums[3] += vdx * dx;
          sums[4] += vdx * dy;
          sums[5] += vdy * dy;
#pragma unroll
          for (int k = 0; k < N; ++k) sums[kMoments + k] += share.weight * pixel_grads[warp][at][k];
        }
      }
#pragma unroll
      for (int k = 0; k < kRow; ++k) {
        for (int step = kSlots<S>; step < kWarp; step *= 2) sums[k] += __shfl_xor_sync(kAllLanes, sums[k], step);
        if (mine >= 0 && part == 0) warp_sums[warp][mine][k] = sums[k];
      }
      __syncwarp();  // the slots are free
    }
    __syncthreads();
    const int size = end - from < kSize ? int(end - from) : kSize;
    for (int at = threadIdx.x; at < size * kRow; at += kThreads) {
      const int i = at / kRow, k = at % kRow;
      const int64_t number = numbers[from + i];
      S total = 0;
      bool hit = false;
      for (int w = 0; w < kWarps; ++w)
        if (warp_hits[w] >> i & 1) total += warp_sums[w][i][k], hit = true;
      if (!hit || number >= pairs) continue;
      rows[number * kRow + k] = total;
      if (k == 0) written[number] = 1;
    }
  }
}

template <class S> struct GaussianGrads { S *means2d, *conics, *depths, *opacities, *colors; };  // depths may be null

// A warp a rank: sixteen lanes for the columns of a row, two rows at a time. Gaussians from `moving` on get no gradients.
template <class S, int N>
__global__ void __launch_bounds__(kThreads)
    sum_pairs(const S* __restrict__ rows, const uint8_t* __restrict__ written, int64_t pairs, int chunks, const S* __restrict__ records,
              int64_t stride, const int32_t* __restrict__ order, const int32_t* __restrict__ pair_start, int64_t visible, int64_t moving,
              int channels, GaussianGrads<S> out) {
  constexpr int kRow = kPairRow<N>, kColumns = kWarp / 2;
  static_assert(kRow <= kColumns);
  const int64_t rank = thread_index() / kWarp;
  if (rank >= visible || order[rank] >= moving) return;  // all lanes of the warp
  const int lane = threadIdx.x % kWarp, column = lane % kColumns, half = lane / kColumns;
  const int64_t begin = pair_start[rank], behind = pair_start[rank + 1], end = behind < pairs ? behind : pairs, g = order[rank];
  S moment = 0;
  for (int chunk = 0; chunk < chunks; ++chunk) {
    S total = 0;
    if (column < kRow) {
      const int64_t of_chunk = int64_t(chunk) * pairs;
#pragma unroll 4
      for (int64_t pair = of_chunk + begin + half; pair < of_chunk + end; pair += 2)
        if (written[pair]) total += rows[pair * kRow + column];
    }
    total += __shfl_xor_sync(kAllLanes, total, kColumns);
    const int feature = chunk * N + column - kMoments;
    if (column < kMoments) moment += total;
    else if (half == 0 && column < kRow) {
      if (feature < channels) out.colors[g * channels + feature] = total;
      else if (feature == channels && out.depths) out.depths[g] = total;
    }
  }
  S m[kMoments];
#pragma unroll
  for (int k = 0; k < kMoments; ++k) m[k] = __shfl_sync(kAllLanes, moment, k);
  if (lane != 0) return;
  const Record<S>& r = *reinterpret_cast<const Record<S>*>(records + rank * stride);
  // Back from the base-2 exponent: the conic is (-2 a, -b, -2 c) ln 2, and dx = pixel - mean.
  const S a = S(-2 * kLn2) * r.a, b = S(-kLn2) * r.b, c = S(-2 * kLn2) * r.c;
  out.means2d[2 * g] = a * m[1] + b * m[2];
  out.means2d[2 * g + 1] = b * m[1] + c * m[2];
  out.conics[3 * g] = S(-0.5) * m[3];
  out.conics[3 * g + 1] = -m[4];
  out.conics[3 * g + 2] = S(-0.5) * m[5];
  out.opacities[g] = m[0] / std::exp2(r.log_opacity);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> composite_backward_cuda(
    const OptTensor& grad_image, const OptTensor& grad_alpha, const OptTensor& grad_depth, const Tensor& image, const Tensor& alpha,
    const Tensor& depth, const Tensor& records, const Tensor& order, const Tensor& pair_start, const Tensor& tile_start,
    const Tensor& lists, int64_t gaussians, int64_t left, int64_t top, const OptTensor& tiles, int64_t fixed) {
  const Grid grid(window_of_image(image, left, top));
  check_tiles(tiles, image.size(2), image.size(1), image);  // those that are not drawn have empty lists
  const c10::cuda::CUDAGuard guard(image.device());
  const int64_t channels = image.size(0), visible = order.numel(), pairs = lists.numel() / 2;
  int64_t stride = 0;
  on_scalar(image, [&](auto tag) { stride = record_stride<decltype(tag)>(channels + 1); });
  check_composed(grad_image, grad_alpha, grad_depth, image, alpha, depth, records, order, pair_start, tile_start, lists, gaussians,
                 grid.count(), stride);
  check_fixed(fixed, gaussians);
  // Depth is the last feature: without a gradient it is left off the end.
  const int64_t features = channels + (grad_depth ? 1 : 0);
  const Tensor colors = image.contiguous(), opacity = alpha.contiguous(), distance = depth.contiguous(), rows_of = records.contiguous();
  const Tensor ids = order.contiguous(), starts = pair_start.contiguous(), firsts = tile_start.contiguous(), both = lists.contiguous();
  const Tensor by_length = longest_first(firsts);
  const OptTensor gi = contiguous(grad_image), ga = contiguous(grad_alpha), gd = contiguous(grad_depth);
  const auto zeros = [&](int64_t rows, int64_t columns) { return at::zeros({rows, columns}, image.options()); };
  Tensor d_means = zeros(gaussians, 2), d_conics = zeros(gaussians, 3), d_opacities = zeros(gaussians, 1);
  Tensor d_colors = zeros(gaussians, channels), d_depths = at::zeros({grad_depth ? gaussians : 0}, image.options()), d_background;
  on_scalar(image, [&](auto tag) {
    using S = decltype(tag);
    const auto in = [](const OptTensor& t) { return t ? data<S>(*t) : nullptr; };
    const auto draw = [&](auto in_chunk) {
      constexpr int N = decltype(in_chunk)::value;
      const int chunks = chunks_of(features, N);
      const Lists<S> walked{data<S>(rows_of), stride, data<int32_t>(firsts), data<int32_t>(both)};
      const Tensor rows = at::empty({chunks, pairs, kPairRow<N>}, image.options());
      const Tensor written = at::zeros({chunks, pairs}, image.options().dtype(at::kByte));
      const Tensor background_rows = at::empty({grid.count(), chunks * N}, image.options());
      launch(draw_vjp_kernel<S, N>, dim3(unsigned(grid.count()), unsigned(chunks)), walked, data<int32_t>(by_length),
             data<int32_t>(both) + pairs, pairs, grid, int(channels), int(features),
             PictureGrads<S>{data<S>(colors), data<S>(opacity), data<S>(distance)}, PictureGrads<S>{in(gi), in(ga), in(gd)},
             data<S>(rows), data<uint8_t>(written), data<S>(background_rows));
      launch(sum_pairs<S, N>, blocks_of(visible * kWarp), data<S>(rows), data<uint8_t>(written), pairs, chunks, data<S>(rows_of), stride,
             data<int32_t>(ids), data<int32_t>(starts), visible, gaussians - fixed, int(channels),
             GaussianGrads<S>{data<S>(d_means), data<S>(d_conics), data<S>(d_depths), data<S>(d_opacities), data<S>(d_colors)});
      Tensor sums = at::empty({chunks * N}, image.options());
      launch(sum_columns<S, S>, dim3(unsigned(chunks * N)), data<S>(background_rows), grid.count(), data<S>(sums));
      d_background = sums.narrow(0, 0, channels);
    };
    if constexpr (!kIsSmall<S>) draw(std::integral_constant<int, 4>{});
    else if (features <= 3) draw(std::integral_constant<int, 3>{});
    else if (features == 4) draw(std::integral_constant<int, 4>{});
    else draw(std::integral_constant<int, 8>{});
  });
  return {d_means, d_conics, d_depths, d_opacities, d_colors, d_background};
}

}  // namespace

TORCH_LIBRARY_IMPL(diff_gaussian_rasterization, CUDA, m) { m.impl("composite_backward", &composite_backward_cuda); }

}  // namespace dgr
