// Calls longest.cuh for test_rasterizer_longest.py.
#include "../csrc/cuda/longest.cuh"

extern "C" void order_of(const int32_t* tile_start, int64_t tiles, int32_t* order) {
  dgr::launch(dgr::order_tiles, dim3(dgr::kClasses), tile_start, tiles, order);
}
