#include "hadamard.h"

#include <algorithm>
#include <cmath>

namespace edgeqat {

void rotate(float* x, int64_t count, int64_t block) {
  if (block < 2) return;
  const float norm = float(1.0 / std::sqrt(double(block)));
  for (int64_t start = 0; start < count; start += block) {
    float* row = x + start;
    for (int64_t half = 1; half < block; half *= 2)
      for (int64_t i = 0; i < block; i += 2 * half)
        for (int64_t j = i; j < i + half; ++j) {
          const float a = row[j], b = row[j + half];
          row[j] = a + b;
          row[j + half] = a - b;
        }
    for (int64_t i = 0; i < block; ++i) row[i] *= norm;
  }
}

int64_t rotation_block(int64_t length) { return std::min<int64_t>(length & -length, 128); }

}  // namespace edgeqat
