// One sweep down the rows gives the mean and, if asked, the gradient.
//
// A task is one band of rows of one channel. It slides down its band with three small ring buffers, so that every
// intermediate stays in cache: the 11 newest rows of both images, one row of blurred moments, and the 11 newest rows of
// the partial derivatives. Row s of the moments is ready once image row s+5 is in; gradient row s-5 once row s of the
// partials is. Rows outside the image are zero rows, which is the zero padding, and adjoint to itself.
//
// The bands do not depend on the number of threads, and their sums are added in order: neither does the result.
//
// Weights multiply a pixel's value and its partial derivatives; a band that no weight reaches is left out. A mask
// multiplies the rows as they are loaded, and the gradient. Absolute differences are those of the rows in cache.
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
        similarity_(images.similarity),
        distance_(images.distance),
        weights_(images.weights),
        mask_(images.mask),
        scale_(images.scale),
        slope_(images.slope),
        images_(2 * kTaps * padded_),
        partials_(train_ && similarity_ ? 3 * kTaps * padded_ : 0),
        blurred_(similarity_ ? 4 * row_stride() : 0),
        pixel_weights_(weights_ ? padded_ : 0),
        pixel_mask_(mask_ ? padded_ : 0),
        column_sums_(padded_),
        column_distances_(distance_ ? padded_ : 0) {
    const auto window = gaussian_window();
    for (int k = 0; k < kTaps; ++k) weight_[k] = T(window[k]);
  }

  // Weighted sums over rows [first, last) of a plane [H,W], and those rows of the gradient of the sums over the plane,
  // each by its factor.
  Sums run(const T* x, const T* y, int64_t first, int64_t last, T* grad) {
    const int64_t reach = train_ && similarity_ ? kRadius : 0;
    if (weights_ && all_weights_are_zero(first - reach, last + reach)) {
      if (train_) std::fill(grad + first * width_, grad + last * width_, T(0));
      return {0, 0};
    }
    std::fill(column_sums_.begin(), column_sums_.end(), 0.0);
    std::fill(column_distances_.begin(), column_distances_.end(), 0.0);
    similarity_ ? sweep(x, y, first, last, reach, grad) : sweep_distances(x, y, first, last, grad);
    Sums sums{0, 0};
    for (int64_t c = margin_; c < width_ - margin_; ++c) sums.ssim += column_sums_[c];
    if (distance_) {
      for (int64_t c = 0; c < width_; ++c) sums.distance += column_distances_[c];
    }
    return sums;
  }

 private:
  void sweep(const T* x, const T* y, int64_t first, int64_t last, int64_t reach, T* grad) {
    for (int64_t row = first - reach - kRadius; row < first - reach + kRadius; ++row) load(x, y, row);
    for (int64_t row = first - reach; row < last + reach; ++row) {
      load(x, y, row + kRadius);
      blur_columns_of_moments(row);
      const bool counts = row >= std::max(first, margin_) && row < std::min(last, height_ - margin_);
      if (row >= margin_ && row < height_ - margin_) load_weights(row);
      if (distance_ && counts) add_distances(row);
      if (!train_) {
        if (counts) finish_row_value();
        continue;
      }
      if (row >= margin_ && row < height_ - margin_) {
        finish_row_partials(row, counts);
      } else {
        for (int i = 0; i < 3; ++i) std::fill_n(partial_row(i, row), padded_, T(0));
      }
      if (row - kRadius >= first) write_gradient(row - kRadius, grad);
    }
  }

  void sweep_distances(const T* x, const T* y, int64_t first, int64_t last, T* grad) {
    for (int64_t row = first; row < last; ++row) {
      load(x, y, row);
      load_weights(row);
      add_distances(row);
      if (!train_) continue;
      const T *a = image_row(0, row), *b = image_row(1, row);
      for (int64_t c = 0; c < padded_; c += kLanes) {
        write(grad, row, c, masked(c, distance_gradient(c, V::load(a + c) - V::load(b + c))));
      }
    }
  }

  static int64_t slot(int64_t row) { return (row + 2 * kTaps) % kTaps; }  // rows start at -10
  T* image_row(int image, int64_t row) { return images_.data() + (image * kTaps + slot(row)) * padded_; }
  T* partial_row(int i, int64_t row) { return partials_.data() + (i * kTaps + slot(row)) * padded_; }
  // Rows that are blurred along x have 5 zero columns on each side.
  int64_t row_stride() const { return padded_ + 2 * kRadius; }
  T* blurred_row(int i) { return blurred_.data() + i * row_stride(); }

  void load(const T* x, const T* y, int64_t row) {
    const T* planes[2] = {x, y};
    const bool inside = row >= 0 && row < height_;
    if (inside) load_mask(row);
    for (int i = 0; i < 2; ++i) {
      T* to = image_row(i, row);
      if (inside) {
        std::copy_n(planes[i] + row * width_, width_, to);
        std::fill(to + width_, to + padded_, T(0));
        if (mask_) {
          for (int64_t c = 0; c < padded_; c += kLanes) V::store(to + c, masked(c, V::load(to + c)));
        }
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

  void load_mask(int64_t row) {
    if (mask_) std::copy_n(mask_ + row * width_, width_, pixel_mask_.data());
  }

  // v by the weights of its pixels. Where they are zero v does not count, even if it is NaN.
  Vec weighted(int64_t c, Vec v) const { return weights_ ? times(V::load(pixel_weights_.data() + c), v) : v; }
  Vec masked(int64_t c, Vec v) const { return mask_ ? times(V::load(pixel_mask_.data() + c), v) : v; }
  static Vec times(Vec weight, Vec v) { return weight != Vec{} ? weight * v : Vec{}; }

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

  void add_distances(int64_t row) {
    const T *x = image_row(0, row), *y = image_row(1, row);
    for (int64_t c = 0; c < padded_; c += kLanes) {
      const Vec d = V::load(x + c) - V::load(y + c);
      V::add(column_distances_.data() + c, weighted(c, d < Vec{} ? -d : d));
    }
  }

  // Of slope_ times the weighted |d|, for d. Where d is 0 it is 0.
  Vec distance_gradient(int64_t c, Vec d) const {
    const Vec slope = slope_ - Vec{};
    return weighted(c, d > Vec{} ? slope : d < Vec{} ? -slope : Vec{});
  }

  // The rows that are finished are those whose weights were loaded last.
  void finish_row_value() {
    for (int64_t c = 0; c < padded_; c += kLanes) V::add(column_sums_.data() + c, weighted(c, ssim<T>(moments_at(c)).value));
  }

  void finish_row_partials(int64_t row, bool counts) {
    T* out[3] = {partial_row(0, row), partial_row(1, row), partial_row(2, row)};
    for (int64_t c = 0; c < padded_; c += kLanes) {
      const Ssim<Vec> s = ssim<T>(moments_at(c));
      if (counts) V::add(column_sums_.data() + c, weighted(c, s.value));
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
  void write_gradient(int64_t row, T* grad) {
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
    load_mask(row);
    if (distance_) load_weights(row);
    const T *x = image_row(0, row), *y = image_row(1, row);
    for (int64_t c = 0; c < padded_; c += kLanes) {
      const Vec a = V::load(x + c), b = V::load(y + c);
      Vec g = scale_ * (blur_row(blurred_row(0), c) + T(2) * a * blur_row(blurred_row(1), c) + b * blur_row(blurred_row(2), c));
      if (distance_) g += distance_gradient(c, a - b);
      write(grad, row, c, masked(c, g));
    }
  }

  void write(T* grad, int64_t row, int64_t c, Vec g) const {
    T* const to = grad + row * width_ + c;
    if (c + kLanes <= width_) return V::store(to, g);
    T lanes[kLanes];
    V::store(lanes, g);
    std::copy_n(lanes, width_ - c, to);
  }

  const int64_t height_, width_, padded_, margin_;
  const bool train_, similarity_, distance_;
  const T *const weights_, *const mask_;
  const T scale_, slope_;
  T weight_[kTaps];
  std::vector<T> images_, partials_, blurred_, pixel_weights_, pixel_mask_;
  std::vector<double> column_sums_, column_distances_;
};

template <typename T>
void sum_bands(const Images<T>& images, int64_t begin, int64_t end, Sums* sums) {
  const int64_t bands = (images.height + kBandRows - 1) / kBandRows;
  BandWorker<T> worker(images);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t offset = task / bands * images.height * images.width, first = task % bands * kBandRows;
    sums[task] = worker.run(images.x + offset, images.y + offset, first, std::min(first + kBandRows, images.height),
                            images.grad ? images.grad + offset : nullptr);
  }
}

}  // namespace
}  // namespace FUSED_SSIM_VARIANT

extern const Kernels FUSED_SSIM_TABLE;
constexpr Kernels FUSED_SSIM_TABLE{sum_bands<float>, sum_bands<double>};

}  // namespace fused_ssim
