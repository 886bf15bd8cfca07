// The part of CUDA C++ that the kernels use, for g++: qualifiers, built-in variables, intrinsics, the runtime's calls.
#pragma once

#include <bit>
#include <climits>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <tuple>
#include <type_traits>

#include "cuda_emulator.h"

// --- qualifiers; __shared__ is static because one block runs at a time ---
#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __shared__ static
#define __forceinline__ __inline__ __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __grid_constant__

// --- built-in types ---
using dim3 = cuda_emulator::Extent;
constexpr int warpSize = 32;

#define CUDA_EMULATOR_VECTORS(T, name)                                                                     \
  struct __attribute__((aligned(2 * sizeof(T)))) name##2 { T x, y; };                                      \
  struct name##3 { T x, y, z; };                                                                           \
  struct __attribute__((aligned(sizeof(T) < 8 ? 4 * sizeof(T) : 16))) name##4 { T x, y, z, w; };           \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; }                                               \
  inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }                                       \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
CUDA_EMULATOR_VECTORS(float, float)
CUDA_EMULATOR_VECTORS(double, double)
CUDA_EMULATOR_VECTORS(int, int)
CUDA_EMULATOR_VECTORS(unsigned, uint)
CUDA_EMULATOR_VECTORS(short, short)
CUDA_EMULATOR_VECTORS(unsigned short, ushort)
CUDA_EMULATOR_VECTORS(unsigned char, uchar)
CUDA_EMULATOR_VECTORS(long long, longlong)
CUDA_EMULATOR_VECTORS(unsigned long long, ulonglong)

// --- barriers ---
using CallSite = std::source_location;
inline void __syncthreads(CallSite at = CallSite::current()) { cuda_emulator::Machine::instance().barrier(0, at); }
inline int __syncthreads_count(int predicate, CallSite at = CallSite::current()) {
  return cuda_emulator::Machine::instance().barrier(predicate, at).votes;
}
inline int __syncthreads_or(int predicate, CallSite at = CallSite::current()) {
  return cuda_emulator::Machine::instance().barrier(predicate, at).votes > 0;
}
inline int __syncthreads_and(int predicate, CallSite at = CallSite::current()) {
  const auto& self = cuda_emulator::Machine::instance().barrier(predicate, at);
  return self.votes == self.voters;
}
inline void __threadfence() {}
inline void __threadfence_block() {}

// --- warp collectives ---
namespace cuda_emulator {

// Calls visit(lane, value) for every lane that took part.
template <class T, class Visit>
void gather(unsigned mask, T value, CallSite at, const Visit& visit) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= sizeof(uint64_t));
  uint64_t word = 0;
  std::memcpy(&word, &value, sizeof value);
  Machine& machine = Machine::instance();
  const unsigned present = machine.collective(mask, word, at).present;
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    if (!(present >> lane & 1)) continue;
    std::memcpy(&value, &machine.peer(lane).seen, sizeof value);
    visit(lane, value);
  }
}

// The value of lane `from`; all bits set (for floats: not a number) if that lane did not take part.
template <class T>
T shuffle(unsigned mask, T value, unsigned from, CallSite at) {
  T result;
  std::memset(&result, 0xff, sizeof result);
  gather(mask, value, at, [&](unsigned lane, T theirs) { if (lane == from) result = theirs; });
  return result;
}

template <class T, class Join>
T reduce(unsigned mask, T value, CallSite at, const Join& join) {
  bool first = true;
  T result{};
  gather(mask, value, at, [&](unsigned, T theirs) { result = std::exchange(first, false) ? theirs : join(result, theirs); });
  return result;
}

template <class T> using Same = std::type_identity_t<T>;  // not deduced: converts as the overloads of CUDA do
inline unsigned lane() { return Machine::instance().lane(); }

}  // namespace cuda_emulator

inline unsigned __ballot_sync(unsigned mask, int predicate, CallSite at = CallSite::current()) {
  unsigned votes = 0;
  cuda_emulator::gather(mask, predicate, at, [&](unsigned lane, int p) { votes |= unsigned(p != 0) << lane; });
  return votes;
}
inline int __any_sync(unsigned mask, int predicate, CallSite at = CallSite::current()) {
  return __ballot_sync(mask, predicate, at) != 0;
}
inline int __all_sync(unsigned mask, int predicate, CallSite at = CallSite::current()) {
  return __ballot_sync(mask, !predicate, at) == 0;
}
inline void __syncwarp(unsigned mask = ~0u, CallSite at = CallSite::current()) { __ballot_sync(mask, 0, at); }
template <class T> unsigned __match_any_sync(unsigned mask, T value, CallSite at = CallSite::current()) {
  unsigned equal = 0;
  cuda_emulator::gather(mask, value, at, [&](unsigned lane, T theirs) { equal |= unsigned(theirs == value) << lane; });
  return equal;
}
template <class T>
T __shfl_sync(unsigned mask, T value, int from, int width = 32, CallSite at = CallSite::current()) {
  const unsigned lane = cuda_emulator::lane(), first = lane & ~(width - 1u);
  return cuda_emulator::shuffle(mask, value, first | (unsigned(from) & (width - 1u)), at);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32, CallSite at = CallSite::current()) {
  const unsigned lane = cuda_emulator::lane();
  return cuda_emulator::shuffle(mask, value, (lane & (width - 1u)) >= by ? lane - by : lane, at);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32, CallSite at = CallSite::current()) {
  const unsigned lane = cuda_emulator::lane();
  return cuda_emulator::shuffle(mask, value, (lane & (width - 1u)) + by < unsigned(width) ? lane + by : lane, at);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int flip, int width = 32, CallSite at = CallSite::current()) {
  const unsigned lane = cuda_emulator::lane(), end = (lane & ~(width - 1u)) + width, from = lane ^ unsigned(flip);
  return cuda_emulator::shuffle(mask, value, from < end ? from : lane, at);
}
#define CUDA_EMULATOR_REDUCE(name, expression)                                                     \
  template <class T> T name(unsigned mask, T value, CallSite at = CallSite::current()) {           \
    return cuda_emulator::reduce(mask, value, at, [](T a, T b) { return T(expression); });         \
  }
CUDA_EMULATOR_REDUCE(__reduce_add_sync, a + b)
CUDA_EMULATOR_REDUCE(__reduce_min_sync, a < b ? a : b)
CUDA_EMULATOR_REDUCE(__reduce_max_sync, a < b ? b : a)
CUDA_EMULATOR_REDUCE(__reduce_or_sync, a | b)
CUDA_EMULATOR_REDUCE(__reduce_and_sync, a & b)

// --- atomics: a fiber is never interrupted between its waits ---
#define CUDA_EMULATOR_ATOMIC(name, expression)                                    \
  template <class T> T name(T* at, cuda_emulator::Same<T> value) {                \
    const T old = *at;                                                            \
    *at = T(expression);                                                          \
    return old;                                                                   \
  }
CUDA_EMULATOR_ATOMIC(atomicAdd, old + value)
CUDA_EMULATOR_ATOMIC(atomicSub, old - value)
CUDA_EMULATOR_ATOMIC(atomicMin, value < old ? value : old)
CUDA_EMULATOR_ATOMIC(atomicMax, old < value ? value : old)
CUDA_EMULATOR_ATOMIC(atomicOr, old | value)
CUDA_EMULATOR_ATOMIC(atomicAnd, old & value)
CUDA_EMULATOR_ATOMIC(atomicExch, value)
template <class T> T atomicCAS(T* at, cuda_emulator::Same<T> expected, cuda_emulator::Same<T> value) {
  const T old = *at;
  if (old == expected) *at = value;
  return old;
}

// --- bits and arithmetic ---
inline int __popc(unsigned x) { return std::popcount(x); }
inline int __popcll(unsigned long long x) { return std::popcount(x); }
inline int __clz(int x) { return std::countl_zero(unsigned(x)); }
inline int __clzll(long long x) { return std::countl_zero((unsigned long long)(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline long long __double_as_longlong(double x) { return std::bit_cast<long long>(x); }
inline double __longlong_as_double(long long x) { return std::bit_cast<double>(x); }
template <class T> T __ldg(const T* from) { return *from; }
template <class T> T __ldcs(const T* from) { return *from; }
template <class T> void __stcs(T* to, cuda_emulator::Same<T> value) { *to = value; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }
template <class A, class B> auto min(A a, B b) { return b < a ? std::common_type_t<A, B>(b) : std::common_type_t<A, B>(a); }
template <class A, class B> auto max(A a, B b) { return a < b ? std::common_type_t<A, B>(b) : std::common_type_t<A, B>(a); }

// --- the runtime: streams are in order because everything happens at once ---
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
enum cudaMemcpyKind { cudaMemcpyHostToHost, cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice, cudaMemcpyDefault };
using cudaStream_t = struct CUstream_st*;

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  void* attrs;
  unsigned numAttrs;
};

namespace cuda_emulator {

inline uint64_t& launches() {
  static uint64_t count = 0;
  return count;
}

// A line in the file that CUDA_EMULATOR_WAITS names: how many kernels were launched behind what the host waits for.
inline void note_wait(uint64_t behind) {
  const char* const path = std::getenv("CUDA_EMULATOR_WAITS");
  if (path && *path) std::ofstream(path, std::ios::app) << behind << "\n";
}

}  // namespace cuda_emulator

template <class... P, class... A>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(P...), A&&... args) {
  ++cuda_emulator::launches();
  const std::tuple<P...> parameters(static_cast<P>(args)...);
  cuda_emulator::Machine::instance().launch(config->gridDim, config->blockDim, config->dynamicSmemBytes,
                                            [&] { std::apply(kernel, parameters); });
  return cudaSuccess;
}
inline const char* cudaGetErrorString(cudaError_t error) { return error == cudaSuccess ? "no error" : "invalid value"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t = nullptr) {
  std::memmove(to, from, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t = nullptr) {
  std::memset(to, value, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }

struct CUevent_st { uint64_t launches; };
using cudaEvent_t = CUevent_st*;
enum { cudaEventDefault = 0, cudaEventDisableTiming = 2 };
inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new CUevent_st{};
  return cudaSuccess;
}
inline cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t = nullptr) {
  event->launches = cuda_emulator::launches();
  return cudaSuccess;
}
inline cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  cuda_emulator::note_wait(cuda_emulator::launches() - event->launches);
  return cudaSuccess;
}
inline cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize, cudaFuncAttributePreferredSharedMemoryCarveout };
template <class Kernel> cudaError_t cudaFuncSetAttribute(Kernel*, cudaFuncAttribute, int) { return cudaSuccess; }
