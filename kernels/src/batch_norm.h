// Batch norm of training, see edgeqat.h.
#pragma once

#include <cstdint>

#include "edgeqat.h"

namespace edgeqat {

// A norm and the ends of the clamp behind it.
struct BatchNorm {
  int64_t channels;
  const float *gain, *bias;
  float epsilon, low, high;
};

void batch_norm(const edgeqat_team& team, const float* x, int64_t rows, const BatchNorm& norm,
                float* mean, float* variance, float* out);
void batch_norm_backward(const edgeqat_team& team, const float* x, const float* grad, int64_t rows,
                         const BatchNorm& norm, const float* mean, const float* variance,
                         float* grad_x, float* grad_gain, float* grad_bias);

}  // namespace edgeqat
