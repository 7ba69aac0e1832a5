// The next token from logits: greedy, or temperature, then top-k, then top-p, with a seed.
#pragma once

#include <cstdint>
#include <vector>

namespace edgeqat {

struct Sampling {
  float temperature = 0;  // 0: greedy
  int64_t top_k = 0;      // 0: all
  float top_p = 1;        // 1: all
  uint64_t seed = 0;
};

class Sampler {
 public:
  explicit Sampler(const Sampling& sampling) : sampling_(sampling), state_(sampling.seed) {}

  int32_t next(const float* logits, int64_t count);

 private:
  double uniform();

  Sampling sampling_;
  uint64_t state_;
  std::vector<int32_t> order_;
  std::vector<double> share_;
};

}  // namespace edgeqat
