// Rotary position embedding: pairs (i, i + D/2) turned by position * frequency_i.
#pragma once

#include <cstdint>
#include <vector>

#include "config.h"

namespace edgeqat {

class Rope {
 public:
  Rope(const RopeSpec& spec, int64_t head_dim);

  // Cosines and sines of one position: [D/2] each.
  void angles(int64_t position, float* cosine, float* sine) const;

  // Turns one head in place.
  static void turn(float* x, const float* cosine, const float* sine, int64_t head_dim);

 private:
  std::vector<float> frequency_;
};

}  // namespace edgeqat
