// Rotary positional embedding: the default, linear, llama3, yarn and longrope scalings.
#pragma once

#include <cstdint>
#include <vector>

#include "rope_config.h"

namespace edgeqat {

class Rope {
 public:
  // adjacent: pairs are neighbours x0 x1, else x_i and the value half of the turned ones behind it.
  Rope(const RopeSpec& spec, int64_t head_dim, bool adjacent);

  int64_t pairs() const { return int64_t(frequency_.size()); }
  // cos and sin [pairs] of a position.
  void angles(int64_t position, float* cosine, float* sine) const;
  // Rotates one head in place.
  void turn(float* x, const float* cosine, const float* sine) const;
  // What queries of a position are multiplied by.
  float query_factor(int64_t position) const;

 private:
  RopeSpec spec_;
  bool adjacent_;
  std::vector<float> frequency_;
};

}  // namespace edgeqat
