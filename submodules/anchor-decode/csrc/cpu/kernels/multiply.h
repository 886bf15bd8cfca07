// Matrix products of small matrices: lanes run along the columns of the result, so that a sum has the same order, and
// thus the same bits, whatever the width of the vectors and whatever rows stand beside it.
#pragma once

#include "../kernels.h"
#include "simd.h"
#include "standard.h"

namespace anchor_decode {
inline namespace ANCHOR_DECODE_VARIANT {
namespace {

// What the sums start from.
enum class From { kZero, kRow, kResult };

template <class T>
struct Product {
  int64_t depth;
  const T* a;
  int64_t a_stride;
  const T* b;  // [depth,columns]
  int64_t b_stride;
  const T* row;  // [columns], with From::kRow
  T* c;          // [rows,columns]
  int64_t c_stride;
};

// kRows rows and kVectors vectors of columns, in registers.
template <class T, int kRows, int kVectors, bool kAcross>
ANCHOR_DECODE_HD void block(const Product<T>& p, From from, int64_t row, int64_t column) {
  using V = Simd<T>;
  typename V::Vec sum[kRows][kVectors];
  T* const c = p.c + row * p.c_stride + column;
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v)
      sum[r][v] = from == From::kResult ? V::load(c + r * p.c_stride + v * V::kLanes)
                  : from == From::kRow  ? V::load(p.row + column + v * V::kLanes)
                                        : typename V::Vec{};
  const T* b = p.b + column;
  const T* a = kAcross ? p.a + row : p.a + row * p.a_stride;
  for (int64_t k = 0; k < p.depth; ++k) {
    typename V::Vec factor[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) factor[v] = V::load(b + v * V::kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const T scalar = kAcross ? a[r] : a[r * p.a_stride];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sum[r][v] += scalar * factor[v];
    }
    b += p.b_stride;
    a += kAcross ? p.a_stride : 1;
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) V::store(c + r * p.c_stride + v * V::kLanes, sum[r][v]);
}

template <class T, int kVectors, bool kAcross>
void columns_of(const Product<T>& p, From from, int64_t rows, int64_t column) {
  int64_t row = 0;
  for (; row + kRowsAtATime <= rows; row += kRowsAtATime) block<T, kRowsAtATime, kVectors, kAcross>(p, from, row, column);
  for (; row + 2 <= rows; row += 2) block<T, 2, kVectors, kAcross>(p, from, row, column);
  if (row < rows) block<T, 1, kVectors, kAcross>(p, from, row, column);
}

// c = start + a b, with a of [rows,depth], or [depth,rows] with kAcross. `columns` is a multiple of kPad.
template <bool kAcross, class T>
void multiply(const Product<T>& p, From from, int64_t rows, int64_t columns) {
  constexpr int kVectors = kPad / Simd<T>::kLanes;  // in kPad columns
  int64_t column = 0;
  if constexpr (kVectors == 1) {
    for (; column + 2 * kPad <= columns; column += 2 * kPad) columns_of<T, 2, kAcross>(p, from, rows, column);
  }
  for (; column < columns; column += kPad) columns_of<T, kVectors, kAcross>(p, from, rows, column);
}

// sum[c] += the sum of rows of column c.
template <class T>
void add_rows(const T* from, int64_t stride, int64_t rows, int64_t columns, T* sum) {
  using V = Simd<T>;
  for (int64_t c = 0; c < columns; c += V::kLanes) {
    typename V::Vec total = V::load(sum + c);
    for (int64_t r = 0; r < rows; ++r) total += V::load(from + r * stride + c);
    V::store(sum + c, total);
  }
}

}  // namespace
}  // namespace ANCHOR_DECODE_VARIANT
}  // namespace anchor_decode
