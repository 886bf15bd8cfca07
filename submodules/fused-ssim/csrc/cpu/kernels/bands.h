// One sweep down the rows gives the mean and, if asked, the gradient.
//
// A task is one band of rows of one channel. It slides down its band with three small ring buffers, so that every
// intermediate stays in cache: the 11 newest rows of both images, one row of blurred moments, and the 11 newest rows of
// the partial derivatives. Row s of the moments is ready once image row s+5 is in; gradient row s-5 once row s of the
// partials is. Rows outside the image are zero rows, which is the zero padding, and adjoint to itself.
//
// The bands do not depend on the number of threads, and their sums are added in order: neither does the result.
//
// Weights multiply a pixel's value and its partial derivatives; a band that no weight reaches is left out.
#pragma once

#include "../../common/ssim.h"
#include "../kernels.h"
#include "simd.h"
#include "standard.h"

namespace fused_ssim {
inline namespace FUSED_SSIM_VARIANT {
namespace {

template <typename T>
class BandWorker {
  using V = Simd<T>;
  using Vec = typename V::Vec;
  static constexpr int64_t kLanes = V::kLanes;

 public:
  explicit BandWorker(const Images<T>& images)
      : height_(images.height),
        width_(images.width),
        padded_((width_ + kLanes - 1) / kLanes * kLanes),
        margin_(images.valid ? kRadius : 0),
        train_(images.grad != nullptr),
        weights_(images.weights),
        images_(2 * kTaps * padded_),
        partials_(train_ ? 3 * kTaps * padded_ : 0),
        blurred_(4 * row_stride()),
        pixel_weights_(weights_ ? padded_ : 0),
        column_sums_(padded_) {
    const auto window = gaussian_window();
    for (int k = 0; k < kTaps; ++k) weight_[k] = T(window[k]);
  }

  // Weighted sum of SSIM over rows [first, last) of a plane [H,W], and those rows of the gradient of `scale` times that
  // sum over the plane.
  double run(const T* x, const T* y, int64_t first, int64_t last, T scale, T* grad) {
    const int64_t reach = train_ ? kRadius : 0;
    if (weights_ && all_weights_are_zero(first - reach, last + reach)) {
      if (train_) std::fill(grad + first * width_, grad + last * width_, T(0));
      return 0;
    }
    std::fill(column_sums_.begin(), column_sums_.end(), 0.0);
    for (int64_t row = first - reach - kRadius; row < first - reach + kRadius; ++row) load(x, y, row);
    for (int64_t row = first - reach; row < last + reach; ++row) {
      load(x, y, row + kRadius);
      blur_columns_of_moments(row);
      const bool counts = row >= std::max(first, margin_) && row < std::min(last, height_ - margin_);
      if (!train_) {
        if (counts) finish_row_value(row);
        continue;
      }
      if (row >= margin_ && row < height_ - margin_) {
        finish_row_partials(row, counts);
      } else {
        for (int i = 0; i < 3; ++i) std::fill_n(partial_row(i, row), padded_, T(0));
      }
      if (row - kRadius >= first) write_gradient(row - kRadius, scale, grad);
    }
    double sum = 0;
    for (int64_t c = margin_; c < width_ - margin_; ++c) sum += column_sums_[c];
    return sum;
  }

 private:
  static int64_t slot(int64_t row) { return (row + 2 * kTaps) % kTaps; }  // rows start at -10
  T* image_row(int image, int64_t row) { return images_.data() + (image * kTaps + slot(row)) * padded_; }
  T* partial_row(int i, int64_t row) { return partials_.data() + (i * kTaps + slot(row)) * padded_; }
  // Rows that are blurred along x have 5 zero columns on each side.
  int64_t row_stride() const { return padded_ + 2 * kRadius; }
  T* blurred_row(int i) { return blurred_.data() + i * row_stride(); }

  void load(const T* x, const T* y, int64_t row) {
    const T* planes[2] = {x, y};
    for (int i = 0; i < 2; ++i) {
      T* to = image_row(i, row);
      if (row >= 0 && row < height_) {
        std::copy_n(planes[i] + row * width_, width_, to);
        std::fill(to + width_, to + padded_, T(0));
      } else {
        std::fill_n(to, padded_, T(0));
      }
    }
  }

  // The weights of a row of the image that lies in the SSIM map.
  const T* weights_of(int64_t row) const { return weights_ + (row - margin_) * (width_ - 2 * margin_); }

  bool all_weights_are_zero(int64_t first, int64_t last) const {
    for (int64_t row = std::max(first, margin_); row < std::min(last, height_ - margin_); ++row) {
      const T* const weights = weights_of(row);
      for (int64_t c = 0; c < width_ - 2 * margin_; ++c) {
        if (weights[c] != T(0)) return false;
      }
    }
    return true;
  }

  void load_weights(int64_t row) {
    if (weights_) std::copy_n(weights_of(row), width_ - 2 * margin_, pixel_weights_.data() + margin_);
  }

  // v by the weights of its pixels. Where they are zero v does not count, even if it is NaN.
  Vec weighted(int64_t c, Vec v) const {
    if (!weights_) return v;
    const Vec weight = V::load(pixel_weights_.data() + c);
    return weight != Vec{} ? weight * v : Vec{};
  }

  // Blur the four moments along y, into blurred_.
  void blur_columns_of_moments(int64_t row) {
    const T *x[kTaps], *y[kTaps];
    for (int k = 0; k < kTaps; ++k) {
      x[k] = image_row(0, row - kRadius + k);
      y[k] = image_row(1, row - kRadius + k);
    }
    for (int64_t c = 0; c < padded_; c += kLanes) {
      Vec m1{}, m2{}, s11{}, s22{}, s12{};
#pragma GCC unroll 11
      for (int k = 0; k < kTaps; ++k) {
        const Vec a = V::load(x[k] + c), b = V::load(y[k] + c);
        const Vec wa = weight_[k] * a, wb = weight_[k] * b;
        m1 += wa;
        m2 += wb;
        s11 += wa * a;
        s22 += wb * b;
        s12 += wa * b;
      }
      // Added here and not above: the result does not depend on which image is the first.
      const Vec moments[4] = {m1, m2, s11 + s22, s12};
      for (int i = 0; i < 4; ++i) V::store(blurred_row(i) + kRadius + c, moments[i]);
    }
  }

  Vec blur_row(const T* row, int64_t c) const {
    Vec sum{};
#pragma GCC unroll 11
    for (int k = 0; k < kTaps; ++k) sum += weight_[k] * V::load(row + c + k);
    return sum;
  }

  Moments<Vec> moments_at(int64_t c) {
    return {blur_row(blurred_row(0), c), blur_row(blurred_row(1), c), blur_row(blurred_row(2), c), blur_row(blurred_row(3), c)};
  }

  void add_to_column_sums(int64_t c, Vec value) {
    for (int64_t lane = 0; lane < kLanes; ++lane) column_sums_[c + lane] += value[lane];
  }

  void finish_row_value(int64_t row) {
    load_weights(row);
    for (int64_t c = 0; c < padded_; c += kLanes) add_to_column_sums(c, weighted(c, ssim<T>(moments_at(c)).value));
  }

  void finish_row_partials(int64_t row, bool counts) {
    load_weights(row);
    T* out[3] = {partial_row(0, row), partial_row(1, row), partial_row(2, row)};
    for (int64_t c = 0; c < padded_; c += kLanes) {
      const Ssim<Vec> s = ssim<T>(moments_at(c));
      if (counts) add_to_column_sums(c, weighted(c, s.value));
      V::store(out[0] + c, weighted(c, s.d_m1));
      V::store(out[1] + c, weighted(c, s.d_squares));
      V::store(out[2] + c, weighted(c, s.d_s12));
    }
    for (T* partial : out) {  // pixels that are not in the mean have no effect
      std::fill_n(partial, margin_, T(0));
      std::fill(partial + width_ - margin_, partial + padded_, T(0));
    }
  }

  // d mean / d x = w*d_m1 + 2 x (w*d_squares) + y (w*d_s12), the window being its own mirror image.
  void write_gradient(int64_t row, T scale, T* grad) {
    for (int i = 0; i < 3; ++i) {
      const T* in[kTaps];
      for (int k = 0; k < kTaps; ++k) in[k] = partial_row(i, row - kRadius + k);
      T* out = blurred_row(i) + kRadius;
      for (int64_t c = 0; c < padded_; c += kLanes) {
        Vec sum{};
#pragma GCC unroll 11
        for (int k = 0; k < kTaps; ++k) sum += weight_[k] * V::load(in[k] + c);
        V::store(out + c, sum);
      }
    }
    const T *x = image_row(0, row), *y = image_row(1, row);
    T* out = grad + row * width_;
    for (int64_t c = 0; c < padded_; c += kLanes) {
      const Vec g = scale * (blur_row(blurred_row(0), c) + T(2) * V::load(x + c) * blur_row(blurred_row(1), c) +
                             V::load(y + c) * blur_row(blurred_row(2), c));
      if (c + kLanes <= width_) {
        V::store(out + c, g);
      } else {
        T lanes[kLanes];
        V::store(lanes, g);
        std::copy_n(lanes, width_ - c, out + c);
      }
    }
  }

  const int64_t height_, width_, padded_, margin_;
  const bool train_;
  const T* const weights_;
  T weight_[kTaps];
  std::vector<T> images_, partials_, blurred_, pixel_weights_;
  std::vector<double> column_sums_;
};

template <typename T>
void sum_bands(const Images<T>& images, int64_t begin, int64_t end, double* sums) {
  const int64_t bands = (images.height + kBandRows - 1) / kBandRows;
  BandWorker<T> worker(images);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t offset = task / bands * images.height * images.width, first = task % bands * kBandRows;
    sums[task] = worker.run(images.x + offset, images.y + offset, first, std::min(first + kBandRows, images.height), images.scale,
                            images.grad ? images.grad + offset : nullptr);
  }
}

}  // namespace
}  // namespace FUSED_SSIM_VARIANT

extern const Kernels FUSED_SSIM_TABLE;
constexpr Kernels FUSED_SSIM_TABLE{sum_bands<float>, sum_bands<double>};

}  // namespace fused_ssim
