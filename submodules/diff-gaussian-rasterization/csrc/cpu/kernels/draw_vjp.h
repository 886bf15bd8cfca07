// The gradient of draw.h, front to back as well.
//
// Gradients of a (tile, Gaussian) pair go to the pair's own row of a buffer, in the order of the tile's list (one
// stream: scattered stores would stall the walk); a second pass gathers and adds the rows of each Gaussian in order. So
// nothing is shared, and results have the same bits for any number of threads.
#pragma once

#include "draw.h"

namespace dgr {
inline namespace DGR_VARIANT {
namespace {

// What a Gaussian's pixels are added up in, and how.
template <class S> using Sum = decltype(summand(Wide<S>()));

// Takes a Gaussian with n features at a patch, which it updates: returns the gradient of ln alpha, and its weight.
template <class S, bool A> DGR_HD Wide<S> take(const AtPatch<S>& at, const S* features, int n, S* patch, Wide<S>& weight) {
  using W = Wide<S>;
  const S* grads = patch + 2 * kPatch;
  W t = load<W>(patch), rest = load<W>(patch + kPatch);
  W color_grad = A ? load<W>(grads + n * kPatch) : W(S(0));
  for (int f = 0; f < n; ++f) color_grad = color_grad + load<W>(grads + f * kPatch) * W(features[f]);
  const W v = blend_vjp(at.opacity, color_grad, t, rest, weight);
  store(t, patch);
  store(rest, patch + kPatch);
  return v;
}

// A: there is a gradient of alpha. The planes of a patch: transmittance, `rest`, gradients of the features and of alpha.
template <class S, int C, bool A>
void draw_tile_vjp(const DrawLists<S>& lists, const Centers<S>& centers, int64_t tile, int runtime, S* patches, Sum<S>* runtime_sums,
                   const CanvasGrads<S>& in) {
  using W = Wide<S>;
  const int n = channels<C>(runtime), stride = (2 + n + A) * kPatch, row_size = pair_row(n);
  const int32_t drawn = walk(lists, centers, tile, patches, stride, [&](const Record<S>& r, uint64_t covered, int64_t position) DGR_LAMBDA {
    const S* features = r.features();
    if (in.ids && in.ids[lists.ranks[position]] >= in.moving) {
      W weight;
      for (; covered; covered &= covered - 1) {
        const int p = __builtin_ctzll(covered);
        take<S, A>(AtPatch<S>(r, centers, p), features, n, patches + p * stride, weight);
      }
      return;
    }
    Sum<S> local[C > 0 ? pair_row(C) : 1];
    Sum<S>* sums = C > 0 ? local : runtime_sums;
    for (int i = 0; i < row_size; ++i) sums[i] = Sum<S>(S(0));
    for (; covered; covered &= covered - 1) {
      const int p = __builtin_ctzll(covered);
      S *patch = patches + p * stride, *grads = patch + 2 * kPatch;
      const AtPatch<S> at(r, centers, p);
      W weight;
      const W v = take<S, A>(at, features, n, patch, weight);
      const W vdx = v * at.dx, vdy = v * at.dy;
      add(sums[0], v);
      add(sums[1], vdx);
      add(sums[2], vdy);
      add_product(sums[3], vdx, at.dx);
      add_product(sums[4], vdx, at.dy);
      add_product(sums[5], vdy, at.dy);
      for (int f = 0; f < n; ++f) add_product(sums[kMoments + f], weight, load<W>(grads + f * kPatch));
    }
    for (int i = 0; i < row_size; i += 4) sum_lanes(sums + i, in.pair_grads + position * row_size + i);
  });
  std::fill(in.pair_grads + drawn * row_size, in.pair_grads + lists.tile_start[tile + 1] * row_size, S(0));
}

// A tile's planes of gradients, and in `rest` <gradient, pixel>: what is still to come, in front of the first Gaussian.
// `value`: a plane that is not yet in use. Planes without a gradient are left as they are.
template <class S>
void load_gradients(const CanvasGrads<S>& in, const TileGrid& grid, const Region& region, S* value, S* rest, S* grads, S* alpha_grads) {
  const int64_t c = in.channels, pixels = grid.height * grid.width;
  const auto take = [&](const S* gradient, const S* image, S* plane) DGR_LAMBDA {
    load_plane(gradient, grid, region, plane);
    load_plane(image, grid, region, value);
    for (int i = 0; i < kTilePixels; ++i) rest[i] += plane[i] * value[i];
  };
  if (in.g_image)
    for (int64_t k = 0; k < c; ++k) take(in.g_image + k * pixels, in.image + k * pixels, grads + k * kPlane);
  if (in.g_depth) take(in.g_depth, in.depth, grads + c * kPlane);
  if (in.g_alpha) take(in.g_alpha, in.alpha, alpha_grads);
}

template <class S> void draw_vjp(const DrawLists<S>& lists, const CanvasGrads<S>& in, int64_t tile) {
  const TileGrid grid(in.window);
  // Depth is the last feature: without a gradient it is left off the end.
  const int64_t c = in.channels, features = c + (in.g_depth ? 1 : 0), planes = 2 + features + (in.g_alpha ? 1 : 0);
  on_channels(features, [&](auto tag) DGR_LAMBDA {
    constexpr int C = decltype(tag)::value;
    Scratch<S> scratch((3 + features) * kPlane), patch_scratch(planes * kTilePixels), sums(C > 0 ? 0 : pair_row(int(features)) * kPatch);
    S *t = scratch.data(), *rest = t + kPlane, *grads = rest + kPlane, *alpha_grads = grads + features * kPlane, *patches = patch_scratch.data();
    const Region region(grid, tile, lists.squares);
    load_gradients(in, grid, region, t, rest, grads, alpha_grads);
    load_plane(in.alpha, grid, region, t);
    for (int64_t k = 0; k < c; ++k) {
      S total = 0;
      for (int i = 0; i < kTilePixels; ++i) total += grads[k * kPlane + i] * (S(1) - t[i]);
      in.background[tile * c + k] = total;
    }
    if (lists.tile_start[tile] == lists.tile_start[tile + 1]) return;
    start_transmittance(region, t);
    for (int64_t k = 0; k < planes; ++k) to_patches(t + k * kPlane, patches + k * kPatch, int(planes) * kPatch);
    (in.g_alpha ? draw_tile_vjp<S, C, true> : draw_tile_vjp<S, C, false>)(lists, Centers<S>(grid, region), tile, int(features), patches,
                                                                           reinterpret_cast<Sum<S>*>(sums.data()), in);
  });
}

// `total`: room for a row, where its size is not known when compiling.
template <class S, int C> void sum_pairs_of(const DrawLists<S>& lists, const PairSums<S>& in, int64_t begin, int64_t end, S* total) {
  const int64_t c = in.channels, row_size = pair_row(channels<C>(int(c + (in.depths ? 1 : 0))));
  S local[C > 0 ? pair_row(C) : 1];
  if (C > 0) total = local;
  for (int64_t rank = begin; rank < end; ++rank) {
    if (rank + kPrefetchRows < end) {
      const int64_t ahead = in.ids[rank + kPrefetchRows];
      __builtin_prefetch(in.means2d + 2 * ahead, 1);
      __builtin_prefetch(in.conics + 3 * ahead, 1);
      __builtin_prefetch(in.opacities + ahead, 1);
      __builtin_prefetch(in.colors + c * ahead, 1);
    }
    if (in.ids[rank] >= in.moving) continue;
    std::fill(total, total + row_size, S(0));
    for (int64_t pair = in.pair_start[rank]; pair < in.pair_start[rank + 1]; ++pair) {
      if (pair + kPrefetchRows < in.pair_start[end]) {
        const S* ahead = in.pair_grads + in.places[pair + kPrefetchRows] * row_size;
        __builtin_prefetch(ahead);
        __builtin_prefetch(ahead + row_size - 1);
      }
      const S* row = in.pair_grads + in.places[pair] * row_size;
      for (int64_t k = 0; k < row_size; ++k) total[k] += row[k];
    }
    const Record<S>& r = record_at(lists, rank);
    const int64_t g = in.ids[rank];
    // Back from the base-2 exponent: the conic is (-2 a, -b, -2 c) ln 2, and dx = pixel - mean.
    const S ca = S(-2 * kLn2) * r.a, cb = S(-kLn2) * r.b, cc = S(-2 * kLn2) * r.c;
    in.means2d[2 * g] = ca * total[1] + cb * total[2];
    in.means2d[2 * g + 1] = cb * total[1] + cc * total[2];
    in.conics[3 * g] = S(-0.5) * total[3];
    in.conics[3 * g + 1] = -total[4];
    in.conics[3 * g + 2] = S(-0.5) * total[5];
    in.opacities[g] = total[0] / std::exp2(r.log_opacity);
    for (int64_t k = 0; k < c; ++k) in.colors[g * c + k] = total[kMoments + k];
    if (in.depths) in.depths[g] = total[kMoments + c];
  }
}

template <class S> void sum_pairs(const DrawLists<S>& lists, const PairSums<S>& in, int64_t begin, int64_t end) {
  const int64_t features = in.channels + (in.depths ? 1 : 0);
  on_channels(features, [&](auto tag) DGR_LAMBDA {
    constexpr int C = decltype(tag)::value;
    Scratch<S> total(C > 0 ? 0 : pair_row(int(features)));
    sum_pairs_of<S, C>(lists, in, begin, end, total.data());
  });
}

}  // namespace
}  // namespace DGR_VARIANT
}  // namespace dgr
