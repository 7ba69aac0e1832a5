#include "pool.h"

#include <sched.h>

#include <fstream>
#include <set>
#include <string>
#include <utility>

#include "error.h"

namespace edgeqat {
namespace {

constexpr int kSpins = 4000;       // some 50 microseconds: longer than the gap between two products
constexpr int kSpinsToYield = 64;  // the caller waits for its workers: let them have the core

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

Pool::Pool(int threads) {
  try {
    for (int thread = 1; thread < threads; ++thread)
      workers_.emplace_back([this, thread] { serve(thread); });
  } catch (const std::exception&) {  // no memory, or the limit of the system
    const int started = this->threads();
    stop();
    throw Error("threads: " + std::to_string(threads) + " could not be started (" +
                std::to_string(started) + " were); give fewer");
  }
}

Pool::~Pool() { stop(); }

void Pool::stop() {
  stopping_ = true;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    round_.fetch_add(1);
  }
  wake_.notify_all();
  for (auto& worker : workers_) worker.join();
}

void Pool::start(Function function, const void* context) {
  function_ = function;
  context_ = context;
  busy_.store(int(workers_.size()), std::memory_order_relaxed);
  round_.fetch_add(1);
  if (asleep_.load()) {
    { std::lock_guard<std::mutex> lock(mutex_); }  // a worker between its check and its sleep
    wake_.notify_all();
  }
  work(0);
  for (int spins = 0; busy_.load(std::memory_order_acquire) > 0; ++spins) {
    relax();
    if (spins % kSpins == kSpinsToYield) sched_yield();
  }
  if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
}

void Pool::work(int thread) noexcept {
  try {
    function_(context_, thread);
  } catch (...) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!failure_) failure_ = std::current_exception();
  }
}

void Pool::serve(int thread) {
  for (uint64_t seen = 0;;) {
    for (int spins = 0; round_.load() == seen && spins < kSpins; ++spins) relax();
    if (round_.load() == seen) {
      std::unique_lock<std::mutex> lock(mutex_);
      asleep_.fetch_add(1);
      wake_.wait(lock, [&] { return round_.load() != seen; });
      asleep_.fetch_sub(1);
    }
    ++seen;
    if (stopping_) return;
    work(thread);
    busy_.fetch_sub(1, std::memory_order_release);
  }
}

int physical_cores() {
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return 1;
  std::set<std::string> cores;
  int logical = 0;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &allowed)) continue;
    ++logical;
    const std::string topology =
        "/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/thread_siblings_list";
    std::string siblings;
    if (std::ifstream(topology) >> siblings) cores.insert(siblings);
  }
  return cores.empty() ? (logical ? logical : 1) : int(cores.size());
}

}  // namespace edgeqat
