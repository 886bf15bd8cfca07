// Threads that help with a loop if they come in time. The file is the same in the three extensions.
//
// The end of an OpenMP region waits for all of its threads, also for those that have not begun: where other programs
// keep the cores busy, every region waits until the scheduler has given each thread a turn. Here the caller takes items
// itself until none are left, and then waits only for items that a helper has begun. A helper that wakes up later finds
// nothing to do. Helpers sleep between loops, and nobody spins.
//
// The result must not depend on which thread takes which item: it is the same for any number of threads.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

// Hidden: one team for all sources of a library, and none that two libraries share.
namespace cpu_team __attribute__((visibility("hidden"))) {

class Team {
 public:
  // The process's helpers. A forked process has none of the threads, so it makes a team of its own.
  static Team& ours() {
    Team* team = current().load(std::memory_order_acquire);
    if (team) return *team;
#if defined(__unix__) || defined(__APPLE__)
    static const int once = pthread_atfork(nullptr, nullptr, [] { current().store(nullptr, std::memory_order_release); });
    (void)once;
#endif
    Team* made = new Team;  // for as long as the process lives: its threads wait in it
    if (current().compare_exchange_strong(team, made, std::memory_order_acq_rel)) return *made;
    delete made;
    return *team;
  }

  // item(i) for i in [0, n), by the caller and at most `helpers` others. The first exception is the caller's.
  template <class F> void run(int64_t n, int helpers, const F& item) {
    Loop loop{n, [](const void* f, int64_t i) { (*static_cast<const F*>(f))(i); }, &item};
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      hire(helpers);
      loop.places = helpers;
      loops_.push_back(&loop);
    }
    for (int i = 0; i < helpers; ++i) wake_.notify_one();
    loop.work();
    std::unique_lock<std::mutex> lock(mutex_);
    loops_.erase(std::find(loops_.begin(), loops_.end(), &loop));
    done_.wait(lock, [&] { return loop.busy == 0; });
    lock.unlock();
    if (loop.error) std::rethrow_exception(loop.error);
  }

 private:
  struct Loop {
    int64_t n;
    void (*call)(const void*, int64_t);
    const void* item;
    std::atomic<int64_t> next{0};
    std::atomic<bool> failed{false};
    std::exception_ptr error = nullptr;
    int places = 0, busy = 0;  // guarded by the team's mutex

    Loop(int64_t count, void (*function)(const void*, int64_t), const void* of) : n(count), call(function), item(of) {}
    bool open() const { return places > 0 && next.load(std::memory_order_relaxed) < n; }
    void work() {
      try {
        for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < n;) call(item, i);
      } catch (...) {
        next.store(n, std::memory_order_relaxed);
        if (!failed.exchange(true)) error = std::current_exception();
      }
    }
  };

  static std::atomic<Team*>& current() {
    static std::atomic<Team*> team{nullptr};
    return team;
  }

  // Fewer helpers will do where the system refuses a thread.
  void hire(int helpers) noexcept {
    try {
      for (; threads_ < helpers; ++threads_) std::thread([this] { help(); }).detach();
    } catch (const std::exception&) {
    }
  }

  [[noreturn]] void help() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      const auto found = std::find_if(loops_.begin(), loops_.end(), [](const Loop* loop) { return loop->open(); });
      if (found == loops_.end()) {
        wake_.wait(lock);
        continue;
      }
      Loop& loop = **found;
      --loop.places;
      ++loop.busy;
      lock.unlock();
      loop.work();
      lock.lock();
      if (--loop.busy == 0) done_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::vector<Loop*> loops_;
  int threads_ = 0;
};

// item(i) for i in [0, n), taken one by one from a shared counter, since items may take very different times.
template <class F> void parallel_items(int64_t n, const F& item) {
  const int helpers = int(std::min<int64_t>(at::in_parallel_region() ? 1 : at::get_num_threads(), n)) - 1;
  if (helpers > 0) return Team::ours().run(n, helpers, item);
  for (int64_t i = 0; i < n; ++i) item(i);
}

// item(begin, end) over consecutive ranges of `grain` items.
template <class F> void parallel_ranges(int64_t n, int64_t grain, const F& item) {
  parallel_items((n + grain - 1) / grain, [&](int64_t i) { item(i * grain, std::min(n, (i + 1) * grain)); });
}

}  // namespace cpu_team
