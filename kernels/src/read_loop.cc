#include "read_loop.h"

#include <algorithm>
#include <chrono>
#include <string>

#include "buffer.h"
#include "error.h"
#include "pool.h"

namespace edgeqat {
namespace {

constexpr int kPasses = 5;
constexpr int64_t kMostBytes = int64_t(1) << 36;
constexpr int64_t kLane = 32;  // words summed side by side: the loop is bound by reading

uint64_t sum(const uint64_t* words, int64_t count) {
  uint64_t lanes[kLane] = {};
  for (int64_t i = 0; i + kLane <= count; i += kLane)
    for (int64_t j = 0; j < kLane; ++j) lanes[j] += words[i + j];
  uint64_t total = 0;
  for (uint64_t lane : lanes) total += lane;
  return total;
}

}  // namespace

double read_speed(int64_t bytes, int threads) {
  if (bytes < 8 * kLane || bytes > kMostBytes)
    throw Error("bytes: " + std::to_string(bytes) + " is not from 256 to 2^36");
  Pool pool(threads > 0 ? threads : physical_cores());
  Buffer<uint64_t> memory(bytes / 8);
  Buffer<uint64_t> sums(pool.threads() * 8);  // a cache line each: nobody waits for another
  double best = 0;
  for (int pass = 0; pass <= kPasses; ++pass) {  // the first one maps the pages
    const auto start = std::chrono::steady_clock::now();
    pool.run([&](int thread) {
      const Range range = pool.share(memory.size(), thread);
      uint64_t* words = memory.data() + range.begin;
      if (pass == 0) std::fill(words, words + (range.end - range.begin), uint64_t(pass + 1));
      sums[thread * 8] += sum(words, range.end - range.begin);
    });
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
    if (pass) best = std::max(best, double(bytes) / taken.count());
  }
  return best;
}

}  // namespace edgeqat
