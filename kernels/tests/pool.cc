// A pool whose work throws, on any of its threads: the caller gets it when all of them are done,
// and the pool goes on.

#include "pool.h"

#include <atomic>
#include <chrono>
#include <new>

#include "expect.h"

namespace edgeqat {
namespace {

// Runs work that `thrower` (-1: all) cannot finish; whether it was thrown behind the last thread.
bool thrown(Pool& pool, int thrower) {
  std::atomic<int> done{0};
  try {
    pool.run([&](int thread) {
      if (thrower < 0 || thread == thrower) {
        ++done;
        throw std::bad_alloc();
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
      ++done;
    });
  } catch (const std::bad_alloc&) {
    return done == pool.threads();
  }
  return false;
}

bool runs(Pool& pool) {
  std::atomic<int> done{0};
  pool.run([&](int thread) { done += 1 << thread; });
  return done == (1 << pool.threads()) - 1;
}

}  // namespace

void check_pool(Expect& expect) {
  for (int threads : {1, 2, 4}) {
    Pool pool(threads);
    for (int thrower = -1; thrower < threads; ++thrower) {
      const std::string name =
          "thread " + std::to_string(thrower) + " of " + std::to_string(threads) + " throws: ";
      expect.that(thrown(pool, thrower), name + "the caller does not get it after all threads");
      expect.that(runs(pool), name + "the next work is not done by all threads");
    }
  }
}

}  // namespace edgeqat
