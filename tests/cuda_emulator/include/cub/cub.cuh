// cub's device-wide calls: the same two-call protocol, the same results, computed by the standard library.
#pragma once

#include <numeric>

#include "../cuda_runtime.h"

namespace cub {

template <class T>
struct DoubleBuffer {
  T* d_buffers[2];
  int selector = 0;
  DoubleBuffer(T* current, T* alternate) : d_buffers{current, alternate} {}
  T* Current() const { return d_buffers[selector]; }
  T* Alternate() const { return d_buffers[selector ^ 1]; }
};

struct Sum {
  template <class T> T operator()(T a, T b) const { return a + b; }
};
struct Min {
  template <class T> T operator()(T a, T b) const { return b < a ? b : a; }
};
struct Max {
  template <class T> T operator()(T a, T b) const { return a < b ? b : a; }
};

namespace emulated {

// Without storage: how much is needed. With it: whether that is enough; then it is overwritten, as cub would.
inline bool asks_for_size(void* storage, size_t& bytes, int64_t items, cudaError_t& error) {
  const size_t needed = 256 + size_t(items);
  error = cudaSuccess;
  if (!storage) {
    bytes = needed;
    return true;
  }
  if (bytes < needed) {
    error = cudaErrorInvalidValue;
    return true;
  }
  std::memset(storage, 0xa5, needed);
  return false;
}

// The key's bits [begin, end) as the unsigned number that cub sorts by.
template <class K>
uint64_t radix(K key, int begin, int end) {
  constexpr int width = 8 * sizeof(K);
  uint64_t bits = 0;
  std::memcpy(&bits, &key, sizeof key);
  if constexpr (std::is_signed_v<K> || std::is_floating_point_v<K>) {
    const uint64_t sign = uint64_t(1) << (width - 1);
    if (std::is_floating_point_v<K> && key == K(0)) bits = 0;  // -0 equals 0
    bits = std::is_floating_point_v<K> && (bits & sign) ? ~bits : bits ^ sign;
  }
  bits >>= begin;
  return end - begin < 64 ? bits & ((uint64_t(1) << (end - begin)) - 1) : bits;
}

template <class K>
std::vector<int64_t> sorted(const K* keys, int64_t items, int begin, int end, bool descending) {
  std::vector<int64_t> order(items);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    const uint64_t x = radix(keys[a], begin, end), y = radix(keys[b], begin, end);
    return descending ? y < x : x < y;
  });
  return order;
}

template <class T>
void permute(const T* in, T* out, const std::vector<int64_t>& order) {
  std::vector<T> result;
  for (int64_t i : order) result.push_back(in[i]);
  std::copy(result.begin(), result.end(), out);
}

}  // namespace emulated

struct DeviceRadixSort {
#define CUB_EMULATED_SORT(suffix, descending)                                                                           \
  template <class K, class V, class N>                                                                                  \
  static cudaError_t SortPairs##suffix(void* storage, size_t& bytes, const K* keys_in, K* keys_out, const V* values_in, \
                                       V* values_out, N items, int begin = 0, int end = 8 * sizeof(K),                  \
                                       cudaStream_t = nullptr) {                                                        \
    cudaError_t error;                                                                                                  \
    if (emulated::asks_for_size(storage, bytes, items, error)) return error;                                            \
    const auto order = emulated::sorted(keys_in, items, begin, end, descending);                                        \
    emulated::permute(keys_in, keys_out, order);                                                                        \
    emulated::permute(values_in, values_out, order);                                                                    \
    return error;                                                                                                       \
  }                                                                                                                     \
  template <class K, class V, class N>                                                                                  \
  static cudaError_t SortPairs##suffix(void* storage, size_t& bytes, DoubleBuffer<K>& keys, DoubleBuffer<V>& values,    \
                                       N items, int begin = 0, int end = 8 * sizeof(K), cudaStream_t = nullptr) {       \
    const cudaError_t error = SortPairs##suffix(storage, bytes, keys.Current(), keys.Alternate(), values.Current(),     \
                                                values.Alternate(), items, begin, end);                                 \
    if (storage) keys.selector ^= 1, values.selector ^= 1;                                                              \
    return error;                                                                                                       \
  }                                                                                                                     \
  template <class K, class N>                                                                                           \
  static cudaError_t SortKeys##suffix(void* storage, size_t& bytes, const K* keys_in, K* keys_out, N items,             \
                                      int begin = 0, int end = 8 * sizeof(K), cudaStream_t = nullptr) {                 \
    cudaError_t error;                                                                                                  \
    if (emulated::asks_for_size(storage, bytes, items, error)) return error;                                            \
    emulated::permute(keys_in, keys_out, emulated::sorted(keys_in, items, begin, end, descending));                     \
    return error;                                                                                                       \
  }
  CUB_EMULATED_SORT(, false)
  CUB_EMULATED_SORT(Descending, true)
#undef CUB_EMULATED_SORT
};

struct DeviceScan {
  template <class In, class Out, class N>
  static cudaError_t InclusiveSum(void* storage, size_t& bytes, In in, Out out, N items, cudaStream_t = nullptr) {
    cudaError_t error;
    if (!emulated::asks_for_size(storage, bytes, items, error)) std::partial_sum(in, in + items, out);
    return error;
  }
  template <class In, class Out, class N>
  static cudaError_t ExclusiveSum(void* storage, size_t& bytes, In in, Out out, N items, cudaStream_t = nullptr) {
    using T = std::decay_t<decltype(*in)>;
    cudaError_t error;
    if (!emulated::asks_for_size(storage, bytes, items, error)) std::exclusive_scan(in, in + items, out, T(0));
    return error;
  }
};

struct DeviceSelect {
  template <class In, class Flag, class Out, class Count, class N>
  static cudaError_t Flagged(void* storage, size_t& bytes, In in, Flag flags, Out out, Count count, N items,
                             cudaStream_t = nullptr) {
    cudaError_t error;
    if (emulated::asks_for_size(storage, bytes, items, error)) return error;
    N kept = 0;
    for (N i = 0; i < items; ++i)
      if (flags[i]) out[kept++] = in[i];
    *count = kept;
    return error;
  }
  template <class In, class Out, class Count, class N, class Keep>
  static cudaError_t If(void* storage, size_t& bytes, In in, Out out, Count count, N items, Keep keep,
                        cudaStream_t = nullptr) {
    cudaError_t error;
    if (emulated::asks_for_size(storage, bytes, items, error)) return error;
    N kept = 0;
    for (N i = 0; i < items; ++i)
      if (keep(in[i])) out[kept++] = in[i];
    *count = kept;
    return error;
  }
};

struct DeviceReduce {
  template <class In, class Out, class N, class Join, class T>
  static cudaError_t Reduce(void* storage, size_t& bytes, In in, Out out, N items, Join join, T initial,
                            cudaStream_t = nullptr) {
    cudaError_t error;
    if (!emulated::asks_for_size(storage, bytes, items, error)) *out = std::accumulate(in, in + items, initial, join);
    return error;
  }
  template <class In, class Out, class N>
  static cudaError_t Sum(void* storage, size_t& bytes, In in, Out out, N items, cudaStream_t = nullptr) {
    return Reduce(storage, bytes, in, out, items, cub::Sum(), std::decay_t<decltype(*out)>(0));
  }
  template <class In, class Out, class N>
  static cudaError_t Min(void* storage, size_t& bytes, In in, Out out, N items, cudaStream_t = nullptr) {
    cudaError_t error;
    if (!emulated::asks_for_size(storage, bytes, items, error)) *out = *std::min_element(in, in + items);
    return error;
  }
  template <class In, class Out, class N>
  static cudaError_t Max(void* storage, size_t& bytes, In in, Out out, N items, cudaStream_t = nullptr) {
    cudaError_t error;
    if (!emulated::asks_for_size(storage, bytes, items, error)) *out = *std::max_element(in, in + items);
    return error;
  }
};

}  // namespace cub
