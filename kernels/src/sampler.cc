#include "sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace edgeqat {

int32_t Sampler::next(const float* logits, int64_t count) {
  if (sampling_.temperature <= 0 || sampling_.top_k == 1)
    return int32_t(std::max_element(logits, logits + count) - logits);
  order_.resize(count);
  std::iota(order_.begin(), order_.end(), 0);
  const auto before = [&](int32_t a, int32_t b) {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  };
  int64_t kept = sampling_.top_k ? std::min(sampling_.top_k, count) : count;
  std::partial_sort(order_.begin(), order_.begin() + kept, order_.end(), before);
  share_.resize(kept);
  double total = 0;
  for (int64_t i = 0; i < kept; ++i) {
    share_[i] = std::exp((double(logits[order_[i]]) - logits[order_[0]]) / sampling_.temperature);
    total += share_[i];
  }
  double sum = 0;  // top-p keeps the fewest tokens whose share reaches it, at least one
  for (int64_t i = 0; i < kept; ++i) {
    sum += share_[i];
    if (sum >= sampling_.top_p * total) kept = i + 1;
  }
  double point = uniform() * sum;
  for (int64_t i = 0; i < kept; ++i) {
    point -= share_[i];
    if (point < 0) return order_[i];
  }
  return order_[kept - 1];
}

// splitmix64: 53 random bits in [0, 1).
double Sampler::uniform() {
  uint64_t z = state_ += 0x9e3779b97f4a7c15;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
  z = (z ^ z >> 27) * 0x94d049bb133111eb;
  return double((z ^ z >> 31) >> 11) * 0x1p-53;
}

}  // namespace edgeqat
