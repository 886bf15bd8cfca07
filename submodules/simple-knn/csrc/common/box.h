// Plain data that every driver and every variant of the kernels shares.
#pragma once

namespace simple_knn {

template <typename T>
struct Box {
  T low[3], high[3];
};

}  // namespace simple_knn
