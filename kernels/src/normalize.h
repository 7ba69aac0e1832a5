// Batch norm of training and the clamp behind it (ReLU6, ReLU, none), for pixels in rows of
// channels: both ways one walk over memory for sums, one for values.
//
//     y = clamp(x * scale + shift, low, high),  scale = gain / sqrt(variance + e)
//
// Kernels see channels `period` values apart, several pixels where channels are few: the period is
// what the inner loops run over. Internal linkage and plain loops, as in vector.h.
#pragma once

#include "isa.h"

namespace edgeqat {
namespace {

// Calls each(i, j) for the values i of a block and their places j in the period.
template <class Each>
inline void each_value(int64_t count, int64_t period, const Each& each) {
  for (int64_t at = 0; at < count; at += period) {
    const int64_t width = count - at < period ? count - at : period;
    for (int64_t j = 0; j < width; ++j) each(at + j, j);
  }
}

inline void moments(const float* __restrict x, int64_t count, int64_t period,
                    float* __restrict means, float* __restrict squares) {
  for (int64_t j = 0; j < period; ++j) means[j] = squares[j] = 0;
  each_value(count, period, [=](int64_t i, int64_t j) { means[j] += x[i]; });
  for (int64_t j = 0; j < period && j < count; ++j)
    means[j] /= float(count / period + (j < count % period));
  each_value(count, period, [=](int64_t i, int64_t j) {
    const float apart = x[i] - means[j];
    squares[j] += apart * apart;
  });
}

inline void normalize(const float* __restrict x, int64_t count, const Affine& affine,
                      float* __restrict out) {
  const float *__restrict scale = affine.scale, *__restrict shift = affine.shift;
  const float low = affine.low, high = affine.high;
  each_value(count, affine.period, [=](int64_t i, int64_t j) {
    const float y = x[i] * scale[j] + shift[j];
    const float above = y < low ? low : y;
    out[i] = above > high ? high : above;
  });
}

// The gradient before the clamp: none where the output is one of its ends.
inline float before_clamp(float y, float grad, float low, float high) {
  return y <= low || y >= high ? 0.0f : grad;
}

inline void normalize_slopes(const float* __restrict x, const float* __restrict grad, int64_t count,
                             const Affine& affine, float* __restrict sums,
                             float* __restrict products) {
  const float *__restrict scale = affine.scale, *__restrict shift = affine.shift;
  const float* __restrict mean = affine.mean;
  const float low = affine.low, high = affine.high;
  for (int64_t j = 0; j < affine.period; ++j) sums[j] = products[j] = 0;
  each_value(count, affine.period, [=](int64_t i, int64_t j) {
    const float slope = before_clamp(x[i] * scale[j] + shift[j], grad[i], low, high);
    sums[j] += slope;
    products[j] += slope * (x[i] - mean[j]);
  });
}

inline void normalize_backward(const float* __restrict x, const float* __restrict grad,
                               int64_t count, const Affine& affine, float* __restrict grad_x) {
  const float *__restrict scale = affine.scale, *__restrict shift = affine.shift;
  const float *__restrict mean = affine.mean, *__restrict common = affine.common;
  const float* __restrict along = affine.along;
  const float low = affine.low, high = affine.high;
  each_value(count, affine.period, [=](int64_t i, int64_t j) {
    const float slope = before_clamp(x[i] * scale[j] + shift[j], grad[i], low, high);
    grad_x[i] = (slope - common[j] - (x[i] - mean[j]) * along[j]) * scale[j];
  });
}

}  // namespace
}  // namespace edgeqat
