// Threads. The result for item i never depends on the thread that computes it: results have the same bits for any
// number of threads.
#pragma once

#include <ATen/Parallel.h>

#include <atomic>
#include <cstdint>

namespace dgr {

// f(i) for i in [0, n), taken one by one from a shared counter, since items may take very different times.
template <class F> void parallel_items(int64_t n, const F& f) {
  std::atomic<int64_t> next{0};
  at::parallel_for(0, at::get_num_threads(), 1, [&](int64_t, int64_t) {
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < n;) f(i);
  });
}

// f(begin, end) over consecutive ranges of `grain` items.
template <class F> void parallel_ranges(int64_t n, int64_t grain, const F& f) {
  parallel_items((n + grain - 1) / grain, [&](int64_t i) { f(i * grain, std::min(n, (i + 1) * grain)); });
}

}  // namespace dgr
