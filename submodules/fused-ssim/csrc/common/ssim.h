// SSIM of one pixel and its derivatives. Plain C++17: no torch, no device, no threads.
//
// Notation: w is the window; m1 = w*x, m2 = w*y, squares = w*(x x + y y), s12 = w*(x y) are the blurred moments of the two
// images at the pixel; the variances occur only as their sum. S may be a scalar or a vector of pixels; T is the scalar type.
#pragma once

#include <array>
#include <cmath>

#ifdef __CUDACC__
#define FUSED_SSIM_HD __host__ __device__
#else
#define FUSED_SSIM_HD
#endif

// The CPU's kernels are compiled once for each instruction set into one library (cpu/v3.cpp, cpu/v4.cpp). If two
// of them had a function of the same name, the linker would keep only one, perhaps for the wrong CPU: the inline
// namespace separates them.
#if !defined(FUSED_SSIM_VARIANT)
#define FUSED_SSIM_VARIANT plain
#endif

namespace fused_ssim {
inline namespace FUSED_SSIM_VARIANT {

constexpr int kRadius = 5;  // 11 taps
constexpr int kTaps = 2 * kRadius + 1;

// The stabilisers of Wang et al. 2004 for values in [0, 1].
constexpr double kC1 = 0.01 * 0.01;
constexpr double kC2 = 0.03 * 0.03;

// Gaussian of sigma 1.5 that sums to 1.
inline std::array<double, kTaps> gaussian_window() {
  constexpr double sigma = 1.5;
  std::array<double, kTaps> window{};
  double sum = 0;
  for (int k = 0; k < kTaps; ++k) {
    const double d = k - kRadius;
    sum += window[k] = std::exp(-d * d / (2 * sigma * sigma));
  }
  for (double& weight : window) weight /= sum;
  return window;
}

template <typename S>
struct Moments {
  S m1, m2, squares, s12;
};

// SSIM at a pixel and its partial derivatives for the moments that img1 moves.
template <typename S>
struct Ssim {
  S value, d_m1, d_squares, d_s12;
};

template <typename T, typename S>
FUSED_SSIM_HD inline Ssim<S> ssim(const Moments<S>& m) {
  const S m12 = m.m1 * m.m2, m11 = m.m1 * m.m1, m22 = m.m2 * m.m2;
  const S a1 = T(2) * m12 + T(kC1), a2 = T(2) * (m.s12 - m12) + T(kC2);
  const S b1 = m11 + m22 + T(kC1), b2 = (m.squares - (m11 + m22)) + T(kC2);
  const S inverse = T(1) / (b1 * b2);
  const S value = a1 * a2 * inverse;
  return {
      value,
      T(2) * inverse * (m.m2 * (a2 - a1) - m.m1 * value * (b2 - b1)),
      -value * inverse * b1,
      T(2) * a1 * inverse,
  };
}

// The two terms of the image loss, (1 - dssim) * L1 and dssim * (1 - SSIM), from sums over all planes. `counts` is that of
// the pixels' weights in one plane, of those that are not ignored. The terms are 0 where nothing counts.
struct ImageTerms {
  double planes, by_distance, by_ssim;  // how much the terms change with the sums

  FUSED_SSIM_HD ImageTerms(double planes, double counts, double dssim)
      : planes(planes), by_distance(counts == 0 ? 0 : (1 - dssim) / (planes * counts)),
        by_ssim(counts == 0 ? 0 : dssim / (planes * counts)) {}

  FUSED_SSIM_HD double l1(double distances) const { return by_distance * distances; }
  // `windows`: the sum of the weights in one plane, also of pixels that are ignored.
  FUSED_SSIM_HD double dssim(double windows, double ssim) const { return by_ssim * (planes * windows - ssim); }
};

}  // namespace FUSED_SSIM_VARIANT
}  // namespace fused_ssim
