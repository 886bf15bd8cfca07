// From Gaussians on the screen to the list of every tile, front to back.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <optional>

#include "tiles.cuh"

namespace dgr {

struct Bins {
  at::Tensor records;     // [V, stride] in depth order
  at::Tensor order;       // int32 [V] the Gaussian of each rank
  at::Tensor pair_start;  // int32 [V+1] first pair of each rank: pairs are numbered rank by rank
  at::Tensor tile_start;  // int32 [tiles+1] first place of each tile in the lists
  at::Tensor lists;       // int32 [2,P] at every place the rank, and the number of the pair; those of no tile last
};

// Contiguous float32 or float64 tensors as `composite` takes them, and its mask of tiles. The one wait for the device is in
// here. `draw` launches what reads the lists; it is called again where `capacity` was too small, and only the tensors of its
// last call count. Behind them, `lists` may hold pairs of no tile while it is called.
template <class S>
Bins bin(const at::Tensor& means2d, const at::Tensor& conics, const at::Tensor& depths, const at::Tensor& radii,
         const at::Tensor& opacities, const at::Tensor& colors, const Grid& grid, const std::optional<at::Tensor>& mask,
         int64_t capacity, const std::function<void(const Bins&)>& draw);

}  // namespace dgr
