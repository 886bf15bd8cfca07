// Kernels that try the emulator itself: each is right or wrong in one known way. Plain CUDA.
#include <cub/device/device_radix_sort.cuh>
#include <cub/device/device_scan.cuh>
#include <cub/device/device_select.cuh>
#include <cuda_runtime.h>

#include <exception>
#include <map>
#include <string>
#include <vector>

namespace {

constexpr unsigned kAll = 0xffffffffu;
constexpr int kThreads = 64;

__device__ int index() { return blockIdx.x * blockDim.x + threadIdx.x; }

__global__ void reversed(const int* in, int* out) {
  __shared__ int tile[kThreads];
  tile[threadIdx.x] = in[index()];
  __syncthreads();
  out[index()] = tile[kThreads - 1 - threadIdx.x];
}

__global__ void without_barrier(const int* in, int* out) {
  __shared__ int tile[kThreads];
  tile[threadIdx.x] = in[index()];
  out[index()] = tile[kThreads - 1 - threadIdx.x];
}

// A warp's sum by halving, one atomic a warp; the lanes of a half warp exchange too.
__global__ void sums(const int* in, int* out) {
  const int lane = threadIdx.x % 32;
  int sum = in[index()];
  for (int by = 16; by > 0; by /= 2) sum += __shfl_down_sync(kAll, sum, by);
  if (lane == 0) atomicAdd(out, sum);
  int half = in[index()];
  if (lane < 16) {
    for (int flip = 8; flip > 0; flip /= 2) half += __shfl_xor_sync(0xffffu, half, flip);
    if (lane == 0) atomicAdd(out + 1, half);
  }
  const int before = __shfl_up_sync(kAll, in[index()], 1), first = __shfl_sync(kAll, in[index()], 8, 8);
  if (index() == 5) out[2] = before, out[3] = first;
  if (index() == 13) out[4] = first;
}

__global__ void votes(const int* in, int* out) {
  const unsigned odd = __ballot_sync(kAll, in[index()] & 1);
  const int count = __syncthreads_count(in[index()] & 1), some = __syncthreads_or(in[index()] == 7),
            every = __syncthreads_and(in[index()] >= 0), all = __all_sync(kAll, in[index()] < 32),
            any = __any_sync(kAll, in[index()] == 40);
  const unsigned equal = __match_any_sync(kAll, in[index()] / 8), least = __reduce_min_sync(kAll, unsigned(in[index()]));
  if (index() != 32) return;
  const int results[] = {int(odd), count, some, every, all, any, int(equal), int(least)};
  for (int i = 0; i < 8; ++i) out[i] = results[i];
}

__global__ void some_return_early(const int* in, int* out) {
  if (threadIdx.x >= 40) return;
  __syncthreads();
  out[index()] = in[index()] + __popc(__ballot_sync(kAll, 1));  // 8 lanes of the second warp are left
}

__global__ void divergent_barrier(const int*, int*) {
  if (threadIdx.x < 5) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void missing_lanes(const int* in, int* out) {
  if (threadIdx.x < 16) out[index()] = __shfl_sync(kAll, in[index()], 0);
  __syncthreads();
}

__global__ void outside_own_mask(const int*, int*) { __syncwarp(1u); }

__global__ void from_absent_lane(const int* in, int* out) {
  if (threadIdx.x < 16) out[index()] = __shfl_sync(0xffffu, in[index()], 20);
}

template <class Call> void with_storage(const Call& call) {
  size_t bytes = 0;
  call(nullptr, bytes);
  std::vector<char> storage(bytes);
  call(storage.data(), bytes);
}

// Blocks of 10x6: threadIdx counts x first.
__global__ void places(const int*, int* out) {
  const int thread = threadIdx.x + blockDim.x * threadIdx.y, block = blockIdx.x + gridDim.x * blockIdx.y;
  out[block * blockDim.x * blockDim.y + thread] = threadIdx.y * 100 + blockIdx.y * 10 + blockIdx.x;
}

void start(void (*kernel)(const int*, int*), dim3 grid, dim3 block, const int* in, int* out) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  cudaLaunchKernelEx(&config, kernel, in, out);
}

const std::map<std::string, void (*)(const int*, int*)> kKernels = {
    {"reversed", reversed}, {"without_barrier", without_barrier},     {"sums", sums},
    {"votes", votes},       {"some_return_early", some_return_early}, {"divergent_barrier", divergent_barrier},
    {"missing_lanes", missing_lanes}, {"outside_own_mask", outside_own_mask}, {"from_absent_lane", from_absent_lane},
};

}  // namespace

// Runs a kernel on 2 blocks of 64 threads; what went wrong, or an empty text.
extern "C" const char* run(const char* name, const int* in, int* out) {
  static std::string error;
  try {
    start(kKernels.at(name), 2, kThreads, in, out);
    error.clear();
  } catch (const std::exception& caught) {
    error = caught.what();
  }
  return error.c_str();
}

extern "C" void run_places(int* out) { start(places, dim3(2, 3), dim3(10, 6), nullptr, out); }

extern "C" void sort(const float* keys, const int* values, float* keys_out, int* values_out, int count) {
  with_storage([&](void* storage, size_t& bytes) {
    cub::DeviceRadixSort::SortPairs(storage, bytes, keys, keys_out, values, values_out, count);
  });
}

// By the low bits only; -1 if a storage that is too small is taken.
extern "C" int sort_low_bits(const unsigned* keys, unsigned* out, int count, int bits) {
  char little;
  size_t one = 1;
  if (cub::DeviceRadixSort::SortKeys(&little, one, keys, out, count, 0, bits) == cudaSuccess) return -1;
  with_storage([&](void* storage, size_t& bytes) {
    cub::DeviceRadixSort::SortKeys(storage, bytes, keys, out, count, 0, bits);
  });
  return 0;
}

extern "C" void scan_and_select(const int* in, int* inclusive, int* exclusive, int* odd, int* kept, int count) {
  with_storage([&](void* s, size_t& bytes) { cub::DeviceScan::InclusiveSum(s, bytes, in, inclusive, count); });
  with_storage([&](void* s, size_t& bytes) { cub::DeviceScan::ExclusiveSum(s, bytes, in, exclusive, count); });
  std::vector<char> flags(count);
  for (int i = 0; i < count; ++i) flags[i] = in[i] & 1;
  with_storage([&](void* s, size_t& bytes) {
    cub::DeviceSelect::Flagged(s, bytes, in, flags.data(), odd, kept, count);
  });
}
