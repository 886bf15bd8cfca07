// The operators' schemas. Drivers register themselves per device (csrc/cpu, csrc/cuda).
#include <torch/library.h>

TORCH_LIBRARY(anchor_decode, m) {
  // N anchors, M of them visible, K offsets, F features, G Gaussians, A anchors with a Gaussian. `weights`, `teacher`: all
  // weights of a decoder in one row (anchor_decode/ops.py::Layout); `distances`: bit i: head i reads the distance.
  // `visible`: int64 [M], or bool [N]. `capacity`: how many visible anchors and Gaussians a GPU expects, so that the host need
  // not wait for their numbers before they are decoded; none: it waits. The same bits for all values.
  // -> means, scales, quats, opacities, colors; neural_opacity [M,K], kept [M,K];
  //    the teacher's scales, quats, colors, neural_opacity (empty without one);
  //    for the gradient: shape [G,4], hidden_opacity [M,H'] and hidden_rest [A,2,H'] (empty without `train`);
  //    int64 [M] the rows of a bool `visible`, ascending (empty for another).
  m.def(
      "decode(Tensor position, Tensor offset, Tensor feature, Tensor log_scale, Tensor visible, Tensor center, "
      "Tensor weights, Tensor? teacher, int hidden, int distances, bool bank, bool train, int[] capacity=[]) -> "
      "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  // Gradients of offset, feature, log_scale and weights. `grads`: of the first five outputs of decode; `grad_neural_opacity`
  // may be absent.
  m.def(
      "decode_backward(Tensor position, Tensor offset, Tensor feature, Tensor log_scale, Tensor visible, Tensor center, "
      "Tensor weights, int hidden, int distances, bool bank, Tensor[] values, Tensor[] saved, Tensor[] grads, "
      "Tensor? grad_neural_opacity) -> (Tensor, Tensor, Tensor, Tensor)");
  // Adds what a view showed to the statistics of growth, where they lie: `opacities` and `views` [N], `gradients` and `drawn`
  // [N,K]. `visible` int64 [M], `kept` bool and `neural_opacity` [M,K] as decode returned them; `radii` int32 [G], 0 where a
  // Gaussian was not drawn; `gradient` [G,2 or more], of which two columns are read: by the projected means; none: zeros.
  m.def(
      "count_view(Tensor visible, Tensor kept, Tensor neural_opacity, Tensor radii, Tensor? gradient, Tensor(a!) opacities, "
      "Tensor(b!) views, Tensor(c!) gradients, Tensor(d!) drawn) -> ()");
}
