// One sweep down the rows gives the mean and, if asked, the gradient.
//
// A task is one band of rows of one channel. It slides down its band with three small ring buffers, so that every
// intermediate stays in cache: the 11 newest rows of both images and of their products, one row of blurred moments, and the
// 11 newest rows of the partial derivatives. Row s of the moments is ready once image row s+5 is in; gradient row s-5 once row s of the
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

// Zeros from a cache line's beginning: a vector then never lies in two lines.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t count) : memory_(count ? count + kLine / sizeof(T) : 0), first_(memory_.data()) {
    while (reinterpret_cast<uintptr_t>(first_) % kLine) ++first_;
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  T* data() { return first_; }
  const T* data() const { return first_; }

 private:
  static constexpr uintptr_t kLine = 64;
  std::vector<T> memory_;
  T* first_;
};

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
        images_(similarity_ ? kMaps * kTaps * padded_ : 0),
        partials_(train_ && similarity_ ? kPartials * kTaps * padded_ : 0),
        blurred_(similarity_ ? kMaps * row_stride() : 0),
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
    std::fill_n(column_sums_.data(), padded_, 0.0);
    if (distance_) std::fill_n(column_distances_.data(), padded_, 0.0);
    similarity_ ? sweep(x, y, first, last, reach, grad) : sweep_distances(x, y, first, last, grad);
    Sums sums{0, 0};
    for (int64_t c = margin_; c < width_ - margin_; ++c) sums.ssim += column_sums_.data()[c];
    if (distance_) {
      for (int64_t c = 0; c < width_; ++c) sums.distance += column_distances_.data()[c];
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
      if (distance_ && counts) {
        for (int64_t c = 0; c < padded_; c += kLanes) add_distance(c, difference(row, c));
      }
      if (!train_) {
        if (counts) finish_row_value();
        continue;
      }
      if (row >= margin_ && row < height_ - margin_) {
        finish_row_partials(row, counts);
      } else {
        std::fill_n(partial_row(row), kPartials * padded_, T(0));
      }
      if (row - kRadius >= first) write_gradient(row - kRadius, grad);
    }
  }

  void sweep_distances(const T* x, const T* y, int64_t first, int64_t last, T* grad) {
    for (int64_t row = first; row < last; ++row) {
      load_weights(row);
      load_mask(row);
      for (int64_t c = 0; c < padded_; c += kLanes) {
        const Vec d = masked(c, read(x, row, c)) - masked(c, read(y, row, c));
        add_distance(c, d);
        if (train_) write(grad, row, c, masked(c, distance_gradient(c, d)));
      }
    }
  }

  static int64_t slot(int64_t row) { return (row + 2 * kTaps) % kTaps; }  // rows start at -10
  // The rows of several maps, a vector of each in turn: x, y, x x + y y and x y; the partial derivatives. So a row is read
  // from one place.
  static constexpr int kMaps = 4, kPartials = 3;
  T* image_row(int64_t row) { return images_.data() + slot(row) * kMaps * padded_; }
  T* partial_row(int64_t row) { return partials_.data() + slot(row) * kPartials * padded_; }
  // Rows that are blurred along x have zero columns on each side, 5 at least.
  static constexpr int64_t kAside = (kRadius + kLanes - 1) / kLanes * kLanes;
  int64_t row_stride() const { return padded_ + 2 * kAside; }
  T* blurred_row(int i) { return blurred_.data() + i * row_stride() + kAside; }

  Vec difference(int64_t row, int64_t c) {
    const T* const from = image_row(row) + kMaps * c;
    return V::load(from) - V::load(from + kLanes);
  }

  // Loads a row of both images, black where they are ignored, and of the two products that are blurred besides.
  void load(const T* x, const T* y, int64_t row) {
    T* to = image_row(row);
    if (row < 0 || row >= height_) {
      std::fill_n(to, kMaps * padded_, T(0));
      return;
    }
    load_mask(row);
    for (int64_t c = 0; c < padded_; c += kLanes, to += kMaps * kLanes) {
      const Vec a = masked(c, read(x, row, c)), b = masked(c, read(y, row, c)), apart = a - b, product = a * b;
      V::store(to, a);
      V::store(to + kLanes, b);
      V::store(to + 2 * kLanes, apart * apart + (product + product));  // a a + b b, in the same bits if they change places
      V::store(to + 3 * kLanes, product);
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

  // The window's weights, the same in all lanes. It is its own mirror image: six.
  struct Window {
    Vec weight[kRadius + 1];
    explicit Window(const T* weights) {
      for (int k = 0; k <= kRadius; ++k) weight[k] = weights[k] - Vec{};
    }
    const Vec& operator[](int k) const { return weight[k <= kRadius ? k : kTaps - 1 - k]; }
  };

  // Blur N maps along y, into blurred_: `rows` of N interleaved maps. The sums of a vector are added side by side, since
  // each waits for the addition before.
  template <int N>
  void blur_columns(const std::array<const T*, kTaps>& rows) {
    const Window window(weight_);
    const int64_t padded = padded_, stride = row_stride();
    T* const to = blurred_row(0);
    for (int64_t c = 0; c < padded; c += kLanes) {
      Vec sums[N] = {};
#pragma GCC unroll 11
      for (int k = 0; k < kTaps; ++k) {
#pragma GCC unroll 4
        for (int i = 0; i < N; ++i) sums[i] += window[k] * V::load(rows[k] + N * c + i * kLanes);
      }
#pragma GCC unroll 4
      for (int i = 0; i < N; ++i) V::store(to + i * stride + c, sums[i]);
    }
  }

  void blur_columns_of_moments(int64_t row) {
    std::array<const T*, kTaps> rows;
    for (int k = 0; k < kTaps; ++k) rows[k] = image_row(row - kRadius + k);
    blur_columns<kMaps>(rows);
  }

  void blur_columns_of_partials(int64_t row) {
    std::array<const T*, kTaps> rows;
    for (int k = 0; k < kTaps; ++k) rows[k] = partial_row(row - kRadius + k);
    blur_columns<kPartials>(rows);
  }

  static Vec blur_row(const Window& window, const T* row, int64_t c) {
    Vec sum{};
#pragma GCC unroll 11
    for (int k = 0; k < kTaps; ++k) sum += window[k] * V::load(row + c + k - kRadius);
    return sum;
  }

  Moments<Vec> moments_at(const Window& window, int64_t c) {
    const auto blurred = [&](int i) { return blur_row(window, blurred_row(i), c); };
    return {blurred(0), blurred(1), blurred(2), blurred(3)};
  }

  void add_distance(int64_t c, Vec d) { V::add(column_distances_.data() + c, weighted(c, d < Vec{} ? -d : d)); }

  // Of slope_ times the weighted |d|, for d. Where d is 0 it is 0.
  Vec distance_gradient(int64_t c, Vec d) const {
    const Vec slope = slope_ - Vec{};
    return weighted(c, d > Vec{} ? slope : d < Vec{} ? -slope : Vec{});
  }

  // The rows that are finished are those whose weights were loaded last.
  void finish_row_value() {
    const Window window(weight_);
    for (int64_t c = 0; c < padded_; c += kLanes) {
      V::add(column_sums_.data() + c, weighted(c, ssim<T>(moments_at(window, c)).value));
    }
  }

  void finish_row_partials(int64_t row, bool counts) {
    const Window window(weight_);
    T* const out = partial_row(row);
    for (int64_t c = 0; c < padded_; c += kLanes) {
      const Ssim<Vec> s = ssim<T>(moments_at(window, c));
      if (counts) V::add(column_sums_.data() + c, weighted(c, s.value));
      T* const to = out + kPartials * c;
      V::store(to, weighted(c, s.d_m1));
      V::store(to + kLanes, weighted(c, s.d_squares));
      V::store(to + 2 * kLanes, weighted(c, s.d_s12));
    }
    // Pixels that are not in the mean have no effect.
    for (int64_t c = 0; c < margin_; ++c) clear_partials(out, c);
    for (int64_t c = width_ - margin_; c < padded_; ++c) clear_partials(out, c);
  }

  void clear_partials(T* row, int64_t c) {
    T* const to = row + kPartials * (c - c % kLanes) + c % kLanes;
    for (int i = 0; i < kPartials; ++i) to[i * kLanes] = T(0);
  }

  // d mean / d x = w*d_m1 + 2 x (w*d_squares) + y (w*d_s12), the window being its own mirror image.
  void write_gradient(int64_t row, T* grad) {
    blur_columns_of_partials(row);
    load_mask(row);
    if (distance_) load_weights(row);
    const Window window(weight_);
    const T* const image = image_row(row);
    const auto blurred = [&](int i, int64_t c) { return blur_row(window, blurred_row(i), c); };
    for (int64_t c = 0; c < padded_; c += kLanes) {
      const Vec a = V::load(image + kMaps * c), b = V::load(image + kMaps * c + kLanes);
      Vec g = scale_ * (blurred(0, c) + T(2) * a * blurred(1, c) + b * blurred(2, c));
      if (distance_) g += distance_gradient(c, a - b);
      write(grad, row, c, masked(c, g));
    }
  }

  // A vector of a plane; zero behind the width.
  Vec read(const T* plane, int64_t row, int64_t c) const {
    const T* const from = plane + row * width_ + c;
    if (c + kLanes <= width_) return V::load(from);
    T lanes[kLanes] = {};
    std::copy_n(from, width_ - c, lanes);
    return V::load(lanes);
  }

  void write(T* plane, int64_t row, int64_t c, Vec v) const {
    T* const to = plane + row * width_ + c;
    if (c + kLanes <= width_) return V::store(to, v);
    T lanes[kLanes];
    V::store(lanes, v);
    std::copy_n(lanes, width_ - c, to);
  }

  const int64_t height_, width_, padded_, margin_;
  const bool train_, similarity_, distance_;
  const T *const weights_, *const mask_;
  const T scale_, slope_;
  T weight_[kTaps];
  Buffer<T> images_, partials_, blurred_, pixel_weights_, pixel_mask_;
  Buffer<double> column_sums_, column_distances_;
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
