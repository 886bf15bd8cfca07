// A vector of N scalars on the compilers' own vector extensions (GCC, Clang): AVX-512, AVX2, NEON or plain code from
// one source. It implements common/scalar.h, so that every shared formula also runs for N Gaussians or pixels at once.
#pragma once

#include "../../common/scalar.h"
#include "standard.h"

namespace dgr {
inline namespace DGR_VARIANT {

// The compiler's vectors, by scalar: GCC wants the element type of vector_size spelled out.
template <class S, int N> struct NativeOf;
template <int N> struct NativeOf<float, N> {
  typedef float Native __attribute__((vector_size(4 * N)));
  typedef int32_t Bits __attribute__((vector_size(4 * N)));
};
template <int N> struct NativeOf<double, N> {
  typedef double Native __attribute__((vector_size(8 * N)));
  typedef int64_t Bits __attribute__((vector_size(8 * N)));
};

template <class S, int N> struct Vec {
  using Native = typename NativeOf<S, N>::Native;
  using NativeBits = typename NativeOf<S, N>::Bits;
  Native v;

  Vec() = default;
  DGR_HD Vec(Native native) : v(native) {}
  DGR_HD Vec(S scalar) : v(scalar - Native{}) {}
  // Constants of common/ are doubles: F(0.5).
  template <class T, class = std::enable_if_t<std::is_arithmetic_v<T> && !std::is_same_v<T, S>>>
  DGR_HD explicit Vec(T scalar) : Vec(S(scalar)) {}

  static DGR_HD Vec load(const S* p) {
    Vec r;
    std::memcpy(&r.v, p, sizeof(r.v));
    return r;
  }
  DGR_HD void store(S* p) const { std::memcpy(p, &v, sizeof(v)); }
  DGR_HD S operator[](int lane) const { return v[lane]; }

  friend DGR_HD Vec operator+(Vec a, Vec b) { return a.v + b.v; }
  friend DGR_HD Vec operator-(Vec a, Vec b) { return a.v - b.v; }
  friend DGR_HD Vec operator*(Vec a, Vec b) { return a.v * b.v; }
  friend DGR_HD Vec operator/(Vec a, Vec b) { return a.v / b.v; }
};

// Gaussians, or pixels of a row, at a time. Also with AVX-512: small Gaussians leave 16 half empty.
constexpr int kLanes = 8;
template <class S> using V = Vec<S, kLanes>;

template <class S, int N> struct Mask {
  typename Vec<S, N>::NativeBits m;  // 0 or -1 a lane
  friend DGR_HD Mask operator&(Mask a, Mask b) { return {a.m & b.m}; }
};

template <class S, int N> DGR_HD Mask<S, N> operator<(Vec<S, N> a, Vec<S, N> b) { return {a.v < b.v}; }
template <class S, int N> DGR_HD Mask<S, N> operator>(Vec<S, N> a, Vec<S, N> b) { return {a.v > b.v}; }
template <class S, int N> DGR_HD Mask<S, N> operator>=(Vec<S, N> a, Vec<S, N> b) { return {a.v >= b.v}; }

template <class S, int N> DGR_HD Vec<S, N> select(Mask<S, N> mask, Vec<S, N> a, Vec<S, N> b) {
  return mask.m ? a.v : b.v;
}

#if defined(DGR_AVX512)
// GCC makes vectors of integers of these comparisons, where the CPU has registers for masks.
template <> struct Mask<float, 16> {
  __mmask16 m;
  friend DGR_HD Mask operator&(Mask a, Mask b) { return {__mmask16(a.m & b.m)}; }
};
DGR_HD Mask<float, 16> operator<(Vec<float, 16> a, Vec<float, 16> b) { return {_mm512_cmp_ps_mask((__m512)a.v, (__m512)b.v, _CMP_LT_OQ)}; }
DGR_HD Mask<float, 16> operator>(Vec<float, 16> a, Vec<float, 16> b) { return b < a; }
DGR_HD Mask<float, 16> operator>=(Vec<float, 16> a, Vec<float, 16> b) { return {_mm512_cmp_ps_mask((__m512)a.v, (__m512)b.v, _CMP_GE_OQ)}; }
DGR_HD Vec<float, 16> select(Mask<float, 16> mask, Vec<float, 16> a, Vec<float, 16> b) {
  return Vec<float, 16>::Native(_mm512_mask_blend_ps(mask.m, (__m512)b.v, (__m512)a.v));
}
DGR_HD bool any(Mask<float, 16> mask) { return mask.m != 0; }
#endif
template <class S, int N> DGR_HD bool any(Mask<S, N> mask) {
  bool set = false;
  for (int i = 0; i < N; ++i) set |= mask.m[i] != 0;
  return set;
}

template <class S, int N> DGR_HD Vec<S, N> magnitude(Vec<S, N> a) {
  using B = typename Vec<S, N>::NativeBits;
  return (typename Vec<S, N>::Native)((B)a.v & ~((B)(Vec<S, N>(S(-0.0)).v)));
}

template <class S, int N> DGR_HD Vec<S, N> root(Vec<S, N> a) {
#if defined(DGR_AVX2)
  if constexpr (std::is_same_v<S, float> && N == 8) return (typename Vec<S, N>::Native)_mm256_sqrt_ps((__m256)a.v);
#endif
  for (int i = 0; i < N; ++i) a.v[i] = root(S(a.v[i]));
  return a;
}

#if defined(DGR_AVX2)
// Single instructions, with the same result for NaN: the second operand.
DGR_HD Vec<float, 8> at_least(Vec<float, 8> x, Vec<float, 8> limit) { return Vec<float, 8>::Native(_mm256_max_ps((__m256)x.v, (__m256)limit.v)); }
DGR_HD Vec<float, 8> at_most(Vec<float, 8> x, Vec<float, 8> limit) { return Vec<float, 8>::Native(_mm256_min_ps((__m256)x.v, (__m256)limit.v)); }
#endif
#if defined(DGR_AVX512)
DGR_HD Vec<float, 16> at_least(Vec<float, 16> x, Vec<float, 16> limit) {
  return Vec<float, 16>::Native(_mm512_maskz_max_ps(0xffff, (__m512)x.v, (__m512)limit.v));
}
DGR_HD Vec<float, 16> at_most(Vec<float, 16> x, Vec<float, 16> limit) {
  return Vec<float, 16>::Native(_mm512_maskz_min_ps(0xffff, (__m512)x.v, (__m512)limit.v));
}
#endif

// a b + c with a single rounding, written out: in a longer expression the compiler would be free to fuse another product
// instead, in one kernel and not in the other.
template <class S, int N> DGR_HD Vec<S, N> fused_here(Vec<S, N> a, Vec<S, N> b, Vec<S, N> c) {
  using Native [[maybe_unused]] = typename Vec<S, N>::Native;
#if defined(DGR_AVX2)
  if constexpr (std::is_same_v<S, float> && N == 8) return (Native)_mm256_fmadd_ps((__m256)a.v, (__m256)b.v, (__m256)c.v);
#endif
#if defined(DGR_AVX512)
  if constexpr (std::is_same_v<S, float> && N == 16) return (Native)_mm512_fmadd_ps((__m512)a.v, (__m512)b.v, (__m512)c.v);
#endif
  for (int i = 0; i < N; ++i) a.v[i] = std::fma(S(a.v[i]), S(b.v[i]), S(c.v[i]));
  return a;
}
#if defined(DGR_AVX512)
DGR_HD Vec<float, 16> fused(Vec<float, 16> a, Vec<float, 16> b, Vec<float, 16> c) { return fused_here(a, b, c); }
#endif

// In float an approximate reciprocal and a Newton step where the CPU has the instruction, relative error below 2e-7: a
// division takes as long as everything else at a pixel.
template <class S, int N> DGR_HD Vec<S, N> reciprocal(Vec<S, N> a) {
#if defined(DGR_AVX2)
  if constexpr (std::is_same_v<S, float> && N == 8) {
#if defined(DGR_AVX512)
    const Vec<S, N> r = (typename Vec<S, N>::Native)_mm256_rcp14_ps((__m256)a.v);
#else
    const Vec<S, N> r = (typename Vec<S, N>::Native)_mm256_rcp_ps((__m256)a.v);
#endif
    return r + r * (Vec<S, N>(S(1)) - a * r);
  }
#endif
#if defined(DGR_AVX512)
  if constexpr (std::is_same_v<S, float> && N == 16) {
    const Vec<S, N> r = (typename Vec<S, N>::Native)_mm512_maskz_rcp14_ps(0xffff, (__m512)a.v);
    return r + r * (Vec<S, N>(S(1)) - a * r);
  }
#endif
  return Vec<S, N>(S(1)) / a;
}

template <class S, int N> DGR_HD typename Vec<S, N>::NativeBits truncated(Vec<S, N> a) {
  return __builtin_convertvector(a.v, typename Vec<S, N>::NativeBits);
}

// For values that fit into an integer of the same size; others give wrong but finite results or are masked by the
// caller.
template <class S, int N> DGR_HD Vec<S, N> round_up(Vec<S, N> a) {
  const Vec<S, N> t = __builtin_convertvector(truncated(a), typename Vec<S, N>::Native);
  // Beyond 2^24 (2^53) every value is whole already, and the conversion might overflow.
  return select(magnitude(a) < Vec<S, N>(S(1 << 24)), select(a > t, t + Vec<S, N>(S(1)), t), a);
}

// 2^x, relative error below 2e-7 in float for |x| <= 126; other lanes are undefined.
template <int N> DGR_HD Vec<float, N> power_of_two(Vec<float, N> x) {
  using B = typename Vec<float, N>::NativeBits;
  using V = typename Vec<float, N>::Native;
  // Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low bits.
  const V shifted = x.v + 12582912.0f;
  const V f = x.v - (shifted - 12582912.0f);
  // Fit of 2^f on [-1/2, 1/2] with the least relative error (9e-8) that is exact at 0.
  V p = f * 1.326472609e-3f + 9.671512781e-3f;
  p = p * f + 5.550733747e-2f;
  p = p * f + 2.402224208e-1f;
  p = p * f + 6.931469776e-1f;
  p = p * f + 1.0f;
  return (V)((B)p + ((B)shifted << 23));
}

template <int N> DGR_HD Vec<double, N> power_of_two(Vec<double, N> x) {
  for (int i = 0; i < N; ++i) x.v[i] = std::exp2(double(x.v[i]));
  return x;
}

// The low byte of each of 8 lanes.
DGR_HD uint64_t bytes(NativeOf<float, 8>::Bits lanes) {
  typedef uint8_t Bytes __attribute__((vector_size(8)));
  const Bytes low = __builtin_convertvector(lanes, Bytes);
  uint64_t word;
  std::memcpy(&word, &low, sizeof(word));
  return word;
}

// The sums of the lanes of four vectors.
template <class S, int N> DGR_HD void sum_lanes(const Vec<S, N>* v, S* out) {
#if defined(DGR_AVX512)
  if constexpr (std::is_same_v<S, float> && N == 16) {
    const auto halves = [](__m512 a, __m512 b) DGR_LAMBDA {
      return _mm512_add_ps(_mm512_maskz_unpacklo_ps(0xffff, a, b), _mm512_maskz_unpackhi_ps(0xffff, a, b));
    };
    // In every 128 bits two sums of two lanes of v[0] and v[1] (v[2] and v[3]), then a sum of four of each.
    const __m512 low = halves((__m512)v[0].v, (__m512)v[1].v), high = halves((__m512)v[2].v, (__m512)v[3].v);
    const __m512 quarters = _mm512_add_ps(_mm512_maskz_shuffle_ps(0xffff, low, high, 0x44), _mm512_maskz_shuffle_ps(0xffff, low, high, 0xee));
    const __m256 both = _mm256_add_ps(_mm512_maskz_extractf32x8_ps(0xff, quarters, 0), _mm512_maskz_extractf32x8_ps(0xff, quarters, 1));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(both), _mm256_extractf128_ps(both, 1)));
    return;
  }
#endif
#if defined(DGR_AVX2)
  if constexpr (std::is_same_v<S, float> && N == 8) {
    const __m256 both = _mm256_hadd_ps(_mm256_hadd_ps((__m256)v[0].v, (__m256)v[1].v), _mm256_hadd_ps((__m256)v[2].v, (__m256)v[3].v));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(both), _mm256_extractf128_ps(both, 1)));
    return;
  }
#endif
  for (int k = 0; k < 4; ++k) {
    S total = 0;
    for (int i = 0; i < N; ++i) total += v[k].v[i];
    out[k] = total;
  }
}

// M vectors that go through a formula together. The chain of dependent instructions of one vector is longer than the
// window of a core; M independent chains keep it busy.
template <class V, int M> struct Group {
  V v[M];

  Group() = default;
  DGR_HD Group(V all) {
    for (int i = 0; i < M; ++i) v[i] = all;
  }
  template <class T, class = std::enable_if_t<std::is_arithmetic_v<T>>> DGR_HD explicit Group(T scalar) : Group(V(scalar)) {}

#define DGR_EACH(type, expression) \
  type r;                          \
  for (int i = 0; i < M; ++i) r.v[i] = expression; \
  return r
  friend DGR_HD Group operator+(const Group& a, const Group& b) { DGR_EACH(Group, a.v[i] + b.v[i]); }
  friend DGR_HD Group operator-(const Group& a, const Group& b) { DGR_EACH(Group, a.v[i] - b.v[i]); }
  friend DGR_HD Group operator*(const Group& a, const Group& b) { DGR_EACH(Group, a.v[i] * b.v[i]); }
};

template <class V, int M> struct GroupMask {
  decltype(V() < V()) v[M];
  friend DGR_HD GroupMask operator&(const GroupMask& a, const GroupMask& b) { DGR_EACH(GroupMask, a.v[i] & b.v[i]); }
};

template <class V, int M> DGR_HD GroupMask<V, M> operator<(const Group<V, M>& a, const Group<V, M>& b) {
  using R = GroupMask<V, M>;
  DGR_EACH(R, a.v[i] < b.v[i]);
}
template <class V, int M> DGR_HD GroupMask<V, M> operator>=(const Group<V, M>& a, const Group<V, M>& b) {
  using R = GroupMask<V, M>;
  DGR_EACH(R, a.v[i] >= b.v[i]);
}
template <class V, int M> DGR_HD Group<V, M> select(const GroupMask<V, M>& mask, const Group<V, M>& a, const Group<V, M>& b) {
  using R = Group<V, M>;
  DGR_EACH(R, select(mask.v[i], a.v[i], b.v[i]));
}
template <class V, int M> DGR_HD Group<V, M> magnitude(const Group<V, M>& a) {
  using R = Group<V, M>;
  DGR_EACH(R, magnitude(a.v[i]));
}
template <class V, int M> DGR_HD Group<V, M> reciprocal(const Group<V, M>& a) {
  using R = Group<V, M>;
  DGR_EACH(R, reciprocal(a.v[i]));
}
template <class V, int M> DGR_HD Group<V, M> power_of_two(const Group<V, M>& a) {
  using R = Group<V, M>;
  DGR_EACH(R, power_of_two(a.v[i]));
}
template <class V, int M> DGR_HD Group<V, M> fused(const Group<V, M>& a, const Group<V, M>& b, const Group<V, M>& c) {
  using R = Group<V, M>;
  DGR_EACH(R, fused_here(a.v[i], b.v[i], c.v[i]));
}
template <class V, int M> DGR_HD GroupMask<V, M> operator>(const Group<V, M>& a, const Group<V, M>& b) { return b < a; }
template <class V, int M> DGR_HD bool any(const GroupMask<V, M>& mask) {
  bool set = false;
  for (int i = 0; i < M; ++i) set |= any(mask.v[i]);
  return set;
}
template <class V, int M> DGR_HD Group<V, M> at_most(const Group<V, M>& x, const Group<V, M>& limit) {
  using R = Group<V, M>;
  DGR_EACH(R, at_most(x.v[i], limit.v[i]));
}
#undef DGR_EACH

// Loads, stores and sums alike for a vector and for a group: a group's vectors are added to one, in order.
template <class S, int N> DGR_HD void load_to(Vec<S, N>& to, const S* p) { to = Vec<S, N>::load(p); }
template <class S, int N, int M> DGR_HD void load_to(Group<Vec<S, N>, M>& to, const S* p) {
  for (int i = 0; i < M; ++i) to.v[i] = Vec<S, N>::load(p + i * N);
}
template <class W, class S> DGR_HD W load(const S* p) {
  W r;
  load_to(r, p);
  return r;
}
template <class S, int N> DGR_HD void store(Vec<S, N> a, S* p) { a.store(p); }
template <class S, int N, int M> DGR_HD void store(const Group<Vec<S, N>, M>& a, S* p) {
  for (int i = 0; i < M; ++i) a.v[i].store(p + i * N);
}
template <class S, int N> DGR_HD Vec<S, N> summand(Vec<S, N> a) { return a; }
template <class V, int M> DGR_HD V summand(const Group<V, M>& a) { return a.v[0]; }
template <class V> DGR_HD void add(V& sum, V a) { sum = sum + a; }
template <class V, int M> DGR_HD void add(V& sum, const Group<V, M>& a) {
  for (int i = 0; i < M; ++i) sum = sum + a.v[i];
}
template <class V> DGR_HD void add_product(V& sum, V a, V b) { sum = sum + a * b; }
template <class V, int M> DGR_HD void add_product(V& sum, const Group<V, M>& a, const Group<V, M>& b) {
  for (int i = 0; i < M; ++i) sum = sum + a.v[i] * b.v[i];
}

// Between C vectors of N numbers as they lie in memory, N rows of C, and one vector for each column: without going
// through memory, where a vector would wait for the numbers that were just stored. Each step takes from one more vector.
template <int C, int N, int Column, int From, size_t... Lane>
DGR_HD auto take_column(typename NativeOf<float, N>::Native taken, typename NativeOf<float, N>::Native from, std::index_sequence<Lane...>) {
  return __builtin_shufflevector(taken, from, (int(Lane) * C + Column) / N == From ? N + (int(Lane) * C + Column) % N : int(Lane)...);
}
template <int C, int N, int Column, int From = 0> DGR_HD void column_of(const Vec<float, N>* flat, Vec<float, N>& out) {
  if constexpr (From < C) {
    out.v = take_column<C, N, Column, From>(out.v, flat[From].v, std::make_index_sequence<N>());
    column_of<C, N, Column, From + 1>(flat, out);
  }
}
template <int C, int N, int Column = 0> DGR_HD void columns_of(const Vec<float, N>* flat, Vec<float, N>* out) {
  if constexpr (Column < C) {
    out[Column] = flat[0];
    column_of<C, N, Column>(flat, out[Column]);
    columns_of<C, N, Column + 1>(flat, out);
  }
}
template <int C, int N, int Part, int Column, size_t... Lane>
DGR_HD auto put_column(typename NativeOf<float, N>::Native put, typename NativeOf<float, N>::Native from, std::index_sequence<Lane...>) {
  return __builtin_shufflevector(put, from, (Part * N + int(Lane)) % C == Column ? N + (Part * N + int(Lane)) / C : int(Lane)...);
}
template <int C, int N, int Part, int Column = 0> DGR_HD void part_of(const Vec<float, N>* columns, Vec<float, N>& out) {
  if constexpr (Column < C) {
    out.v = put_column<C, N, Part, Column>(out.v, columns[Column].v, std::make_index_sequence<N>());
    part_of<C, N, Part, Column + 1>(columns, out);
  }
}
template <int C, int N, int Part = 0> DGR_HD void parts_of(const Vec<float, N>* columns, Vec<float, N>* out) {
  if constexpr (Part < C) {
    out[Part] = columns[0];
    part_of<C, N, Part>(columns, out[Part]);
    parts_of<C, N, Part + 1>(columns, out);
  }
}

}  // namespace DGR_VARIANT
}  // namespace dgr
