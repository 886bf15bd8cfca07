// Runs the blocks of a kernel one after the other, the threads of a block as fibers on one CPU thread.
//
// A fiber runs until it waits (at a barrier or in a warp collective) or returns. When none can run, the waits that are
// complete are released; when none is complete either, the launch ends with an error that says who waits where.
#pragma once

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <functional>
#include <map>
#include <mutex>
#include <random>
#include <source_location>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace cuda_emulator {

struct Extent {
  unsigned x, y, z;
  constexpr Extent(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

}  // namespace cuda_emulator

inline cuda_emulator::Extent threadIdx, blockIdx, blockDim, gridDim;  // of the fiber that runs

namespace cuda_emulator {

constexpr unsigned kWarp = 32, kMaxThreads = 1024;
constexpr size_t kStackBytes = 128 * 1024, kGuardBytes = 4096;  // a stack that overflows hits the guard page
constexpr size_t kMaxSharedBytes = 227 * 1024;

struct Fiber {
  enum State { ready, at_barrier, in_collective, returned };

  State state = returned;
  bool started = false;
  char* stack = nullptr;
  jmp_buf here;
  std::source_location where;
  unsigned named = 0, present = 0;   // lanes named by the collective's mask; those of them that took part
  uint64_t given = 0, seen = 0;      // a lane's word, and as the others of its collective see it
  int predicate = 0, votes = 0, voters = 0;
};

class Machine {
 public:
  static Machine& instance() {
    static Machine machine;
    return machine;
  }

  void launch(Extent grid, Extent block, size_t shared_bytes, const std::function<void()>& kernel) {
    const std::lock_guard<std::mutex> one_at_a_time(mutex_);
    const uint64_t threads = uint64_t(block.x) * block.y * block.z, blocks = uint64_t(grid.x) * grid.y * grid.z;
    if (!threads || threads > kMaxThreads || block.z > 64) fail("a block has " + std::to_string(threads) + " threads");
    if (!blocks || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) fail("the grid's size is out of range");
    if (shared_bytes > kMaxSharedBytes) fail(std::to_string(shared_bytes) + " bytes of dynamic shared memory");
    gridDim = grid, blockDim = block, kernel_ = &kernel, count_ = unsigned(threads);
    read_order();
    for (uint64_t i = 0; i < blocks; ++i) {
      const uint64_t at = reverse_ ? blocks - 1 - i : i;
      blockIdx = {unsigned(at % grid.x), unsigned(at / grid.x % grid.y), unsigned(at / grid.x / grid.y)};
      shared_.assign(shared_bytes, '\xff');  // not a number: nobody may count on zeros
      try {
        run_block();
      } catch (...) {
        for (Fiber& fiber : fibers_) fiber.started = false;  // what waits is abandoned where it stands
        throw;
      }
    }
  }

  void* dynamic_shared() { return shared_.data(); }

  const Fiber& barrier(int predicate, std::source_location where) {
    Fiber& self = fibers_[current_];
    self.predicate = predicate != 0;
    wait(Fiber::at_barrier, where);
    return self;
  }

  const Fiber& collective(unsigned mask, uint64_t given, std::source_location where) {
    Fiber& self = fibers_[current_];
    if (!(mask >> lane() & 1)) fail(place(where) + ": lane " + std::to_string(lane()) + " is not in its own mask");
    self.named = mask, self.given = given;
    wait(Fiber::in_collective, where);
    return self;
  }

  unsigned lane() const { return current_ % kWarp; }
  const Fiber& peer(unsigned lane) const { return fibers_[current_ / kWarp * kWarp + lane]; }

 private:
  Machine() : fibers_(kMaxThreads) {}

  [[noreturn]] static void fail(const std::string& message) { throw std::runtime_error("cuda_emulator: " + message); }
  static std::string place(const std::source_location& at) {
    return std::string(at.file_name()) + ":" + std::to_string(at.line());
  }
  static bool same(const std::source_location& a, const std::source_location& b) {
    return a.line() == b.line() && a.column() == b.column() &&
           (a.file_name() == b.file_name() || !std::strcmp(a.file_name(), b.file_name()));
  }

  // CUDA_EMULATOR_ORDER: forward (default), reverse, or a number that seeds a new order for every step.
  void read_order() {
    const char* order = std::getenv("CUDA_EMULATOR_ORDER");
    const std::string name = order && *order ? order : "forward";
    reverse_ = name == "reverse";
    shuffled_ = !reverse_ && name != "forward";
    if (shuffled_) random_.seed(std::stoul(name));
    order_.resize(count_);
    for (unsigned i = 0; i < count_; ++i) order_[i] = reverse_ ? count_ - 1 - i : i;
  }

  void run_block() {
    for (unsigned i = 0; i < count_; ++i) fibers_[i].state = Fiber::ready;
    do {
      if (shuffled_) std::shuffle(order_.begin(), order_.end(), random_);
      for (unsigned i : order_) {
        if (fibers_[i].state == Fiber::ready) resume(i);
        if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
      }
    } while (release_collectives() || release_barrier());
    for (unsigned i = 0; i < count_; ++i) {
      if (fibers_[i].state != Fiber::returned) fail("deadlock: " + who_waits());
    }
  }

  bool release_collectives() {
    bool released = false;
    for (unsigned i = 0; i < count_; ++i) {
      if (fibers_[i].state != Fiber::in_collective) continue;
      const unsigned first = i / kWarp * kWarp;
      unsigned present = 0;
      bool complete = true;
      for (unsigned j = first; j < std::min(first + kWarp, count_); ++j) {
        const Fiber& other = fibers_[j];
        if (!(fibers_[i].named >> (j - first) & 1) || other.state == Fiber::returned) continue;
        complete &= other.state == Fiber::in_collective && other.named == fibers_[i].named &&
                    same(other.where, fibers_[i].where);
        present |= 1u << (j - first);
      }
      if (!complete) continue;
      for (unsigned j = first; j < std::min(first + kWarp, count_); ++j) {
        if (!(present >> (j - first) & 1)) continue;
        fibers_[j].seen = fibers_[j].given;
        fibers_[j].present = present;
        fibers_[j].state = Fiber::ready;
      }
      released = true;
    }
    return released;
  }

  bool release_barrier() {
    int votes = 0, voters = 0;
    const Fiber* first = nullptr;
    for (unsigned i = 0; i < count_; ++i) {
      const Fiber& fiber = fibers_[i];
      if (fiber.state == Fiber::returned) continue;  // as on the device: only threads that still run are waited for
      if (fiber.state != Fiber::at_barrier) return false;
      if (!first) first = &fiber;
      if (!same(fiber.where, first->where)) fail("threads of one block are at different barriers: " + who_waits());
      ++voters;
      votes += fiber.predicate;
    }
    for (unsigned i = 0; i < count_; ++i) {
      if (fibers_[i].state == Fiber::returned) continue;
      fibers_[i].votes = votes, fibers_[i].voters = voters;
      fibers_[i].state = Fiber::ready;
    }
    return voters > 0;
  }

  std::string who_waits() const {
    std::map<std::string, std::vector<unsigned>> places;
    for (unsigned i = 0; i < count_; ++i) {
      const Fiber& fiber = fibers_[i];
      const bool barrier = fiber.state == Fiber::at_barrier;
      places[fiber.state == Fiber::returned ? "returned"
                                            : (barrier ? "at the barrier " : "in the collective ") + place(fiber.where)]
          .push_back(i);
    }
    std::ostringstream text;
    text << "block (" << blockIdx.x << ", " << blockIdx.y << ", " << blockIdx.z << ")";
    for (const auto& [at, threads] : places) text << "; " << threads.size() << " " << at << ", first " << threads[0];
    return text.str();
  }

  // --- fibers: entered once through their own context, then switched by jumps, which need no system call ---

  void resume(unsigned i) {
    Fiber& fiber = fibers_[i];
    threadIdx = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
    current_ = i;
    if (_setjmp(scheduler_)) return;
    if (fiber.started) _longjmp(fiber.here, 1);
    fiber.started = true;
    if (!fiber.stack) {
      void* stack = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (stack == MAP_FAILED || mprotect(stack, kGuardBytes, PROT_NONE)) fail("no memory for a thread's stack");
      fiber.stack = static_cast<char*>(stack);
    }
    getcontext(&start_);
    start_.uc_stack.ss_sp = fiber.stack;
    start_.uc_stack.ss_size = kStackBytes;
    makecontext(&start_, &Machine::live, 0);
    setcontext(&start_);
  }

  static void live() {
    Machine& machine = instance();
    for (;;) {  // a fiber outlives its block and takes a thread of the next
      try {
        (*machine.kernel_)();
      } catch (...) {
        machine.error_ = std::current_exception();
      }
      machine.wait(Fiber::returned, std::source_location::current());
    }
  }

  void wait(Fiber::State state, std::source_location where) {
    Fiber& self = fibers_[current_];
    self.state = state;
    self.where = where;
    if (!_setjmp(self.here)) _longjmp(scheduler_, 1);
  }

  std::mutex mutex_;
  std::vector<Fiber> fibers_;
  std::vector<unsigned> order_;
  std::vector<char> shared_;
  const std::function<void()>* kernel_ = nullptr;
  std::exception_ptr error_;
  std::mt19937 random_;
  bool reverse_ = false, shuffled_ = false;
  unsigned count_ = 0, current_ = 0;
  jmp_buf scheduler_;
  ucontext_t start_;
};

inline void* dynamic_shared() { return Machine::instance().dynamic_shared(); }

}  // namespace cuda_emulator
