// Threads that share one engine's work: each call splits it the same way, the caller works too.
//
// Between two calls workers spin for some microseconds, because the next product follows at once,
// then sleep.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace edgeqat {

struct Range {
  int64_t begin, end;
};

class Pool {
 public:
  explicit Pool(int threads);
  ~Pool();
  Pool(const Pool&) = delete;

  int threads() const { return int(workers_.size()) + 1; }

  // Calls work(thread) once for every thread in [0, threads()) and waits for all of them. What one
  // of them throws is thrown here afterwards, of several the first.
  template <class Work>
  void run(const Work& work) {
    start([](const void* context, int thread) { (*static_cast<const Work*>(context))(thread); },
          &work);
  }

  // Calls work(begin, end) on every thread with its share of [0, count).
  template <class Work>
  void split(int64_t count, const Work& work) {
    run([&](int thread) {
      const Range range = share(count, thread);
      if (range.begin < range.end) work(range.begin, range.end);
    });
  }

  // The part of [0, count) that belongs to a thread.
  Range share(int64_t count, int thread) const {
    return {count * thread / threads(), count * (thread + 1) / threads()};
  }

 private:
  using Function = void (*)(const void*, int);

  void start(Function function, const void* context);
  void serve(int thread);
  void work(int thread) noexcept;
  void stop();

  std::vector<std::thread> workers_;
  Function function_ = nullptr;
  const void* context_ = nullptr;
  std::atomic<uint64_t> round_{0};
  std::atomic<int> busy_{0};
  std::atomic<bool> stopping_{false};
  std::atomic<int> asleep_{0};
  std::mutex mutex_;
  std::condition_variable wake_;
  std::exception_ptr failure_;  // of this round; written under mutex_
};

// Physical cores this process may use.
int physical_cores();

}  // namespace edgeqat
