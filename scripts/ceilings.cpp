// What this machine can do at most: fused multiply-adds in vectors of 4, 8 and 16 floats, and memory bandwidth.
//
//   g++ -O3 -march=native -std=c++17 -pthread scripts/ceilings.cpp -o ceilings && ./ceilings [THREADS]
//
// The kernels' distance to these is in docs/kernels.md. Best of five runs each: a ceiling is not a median. Seconds are
// CPU time of the slowest thread: what other programs take of a core does not count.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <thread>
#include <vector>

template <int N> struct Floats { typedef float Type __attribute__((vector_size(4 * N))); };

double cpu_seconds() {
  timespec t;
  return clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t), double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
}

template <class F> double best_seconds(int threads, const F& work) {
  double best = 1e30;
  for (int run = 0; run < 5; ++run) {
    std::vector<std::thread> all;
    std::vector<double> seconds(threads);
    for (int t = 0; t < threads; ++t)
      all.emplace_back([&, t] {
        const double start = cpu_seconds();
        work(t);
        seconds[t] = cpu_seconds() - start;
      });
    for (std::thread& thread : all) thread.join();
    best = std::min(best, *std::max_element(seconds.begin(), seconds.end()));
  }
  return best;
}

// Independent chains: more than latency times units, fewer than registers.
constexpr int kChains = 12;

template <int N> void fma_rate(int threads) {
  using V = typename Floats<N>::Type;
  constexpr int64_t kSteps = 100'000'000;
  const double seconds = best_seconds(threads, [](int t) {
    V chain[kChains], factor = V{} + 0.999f, term = V{} + 0.001f;
    for (int i = 0; i < kChains; ++i) chain[i] = V{} + float(i + t);
    for (int64_t s = 0; s < kSteps; ++s) {
      asm volatile("" : "+x"(factor), "+x"(term));  // not known when compiling
#pragma GCC unroll 12
      for (int i = 0; i < kChains; ++i) chain[i] = chain[i] * factor + term;
    }
    for (int i = 1; i < kChains; ++i) chain[0] += chain[i];
    asm volatile("" : : "x"(chain[0]));
  });
  const double rate = 1e-9 * kSteps * kChains * threads / seconds;
  std::printf("fma, %2d floats, %d thread(s): %6.2f G instructions/s, %7.1f GFLOP/s\n", N, threads, rate, 2 * N * rate);
}

// a = b + s c over three arrays of 1 GB: 12 bytes an element, 16 with the line that a store fetches first.
void triad(int threads) {
  constexpr int64_t kCount = 1 << 28;
  static std::vector<float> a(kCount), b(kCount, 1.0f), c(kCount, 2.0f);
  const double seconds = best_seconds(threads, [threads](int t) {
    const int64_t begin = kCount * t / threads, end = kCount * (t + 1) / threads;
    for (int64_t i = begin; i < end; ++i) a[i] = b[i] + 3.0f * c[i];
    asm volatile("" : : "r"(a.data()) : "memory");
  });
  std::printf("triad, %d thread(s): %.2f GB/s\n", threads, 12.0 * kCount / seconds * 1e-9);
}

int main(int argc, char** argv) {
  const int all = argc > 1 ? std::max(std::atoi(argv[1]), 1) : int(std::thread::hardware_concurrency());
  for (int threads : {1, all}) {
    fma_rate<4>(threads);
    fma_rate<8>(threads);
    fma_rate<16>(threads);
    triad(threads);
  }
}
