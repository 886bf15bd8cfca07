// The operator's schema. Drivers register themselves per device (csrc/cpu, csrc/cuda).
#include <torch/library.h>

TORCH_LIBRARY(simple_knn, m) {
  // points [N,3] -> [N] mean squared distance to the 3 nearest other points.
  m.def("mean_squared_distance(Tensor points) -> Tensor");
}
