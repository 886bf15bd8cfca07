// What a view adds to the statistics of one anchor.
#pragma once

#include "decode.h"

namespace anchor_decode {
inline namespace ANCHOR_DECODE_VARIANT {

template <class T>
struct Counts {
  int64_t offsets, columns;
  const int64_t* visible;
  const bool* kept;
  const T* neural;
  const int32_t* radii;
  const T* gradient;  // rows of `columns`, of which two are read; null: zeros
  T *opacities, *views, *gradients, *drawn;
};

// In double the squares of floats neither overflow nor vanish; a call of hypot takes as long as all else.
ANCHOR_DECODE_HD float length(float x, float y) { return float(std::sqrt(double(x) * x + double(y) * y)); }
ANCHOR_DECODE_HD double length(double x, double y) { return std::hypot(x, y); }

// The anchor m of those visible, whose first Gaussian is `gaussian`; returns the one behind its last.
template <class T>
ANCHOR_DECODE_HD int64_t count_anchor(const Counts<T>& c, int64_t m, int64_t gaussian) {
  const int64_t row = c.visible[m], from = m * c.offsets, to = row * c.offsets;
  T sum = 0;
  for (int64_t k = 0; k < c.offsets; ++k) {
    const T opacity = c.neural[from + k];
    sum += opacity < 0 ? T(0) : opacity;
    if (!c.kept[from + k]) continue;
    const int64_t g = gaussian++;
    if (c.radii[g] <= 0) continue;
    c.drawn[to + k] += T(1);
    if (c.gradient) c.gradients[to + k] += length(c.gradient[g * c.columns], c.gradient[g * c.columns + 1]);
  }
  c.opacities[row] += sum;
  c.views[row] += T(1);
  return gaussian;
}

}  // namespace ANCHOR_DECODE_VARIANT
}  // namespace anchor_decode
