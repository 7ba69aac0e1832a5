// The quantizers of training, each one walk over memory: values to the nearest level and back, and
// the gradient rules of edgeqat/quant/ste.py, with the results of the torch code there where they
// are finite.
//
// Internal linkage and plain loops, as in vector.h.
#pragma once

#include "isa.h"
#include "vector.h"

namespace edgeqat {
namespace {

// The level nearest to x / step, in steps.
inline float nearest(const Levels& levels, float ratio) {
  return levels.code(ratio) + levels.offset;
}

constexpr int kScaleRatios = 64;          // scales tried by mse_scale
constexpr float kSmallestScale = 0x1p-20f;  // FP16_MIN_SCALE of edgeqat/quant/functional.py

// A scale no smaller than what is stored, with its sign.
inline float stored_scale(float scale) {
  const float size = __builtin_fabsf(scale);
  return __builtin_copysignf(size < kSmallestScale ? kSmallestScale : size, scale);
}

// out = level((x - beta) / scale) * scale + beta.
inline void lsq(const float* x, int64_t count, float scale, float beta, int bits, float* out) {
  const Levels levels(bits);
  for (int64_t i = 0; i < count; ++i)
    out[i] = nearest(levels, (x[i] - beta) / scale) * scale + beta;
}

// The squared error of a row at a scale. Errors are added in float64, where the order makes no
// difference. Zeros cost nothing on the half-step grid.
template <bool HALF_STEP, bool WEIGHED>
inline double squared_error(const float* x, const float* importance, int64_t count, float scale,
                            const Levels& levels) {
  constexpr int64_t kPart = 64;  // long enough for loops that stay loops
  float errors[kPart];
  double sums[kPart] = {};
  for (int64_t begin = 0; begin < count; begin += kPart) {
    const int64_t size = count - begin < kPart ? count - begin : kPart;
    for (int64_t j = 0; j < size; ++j) {
      const float value = x[begin + j];
      const float difference = nearest(levels, value / scale) * scale - value;
      const float error = difference * difference;
      errors[j] = HALF_STEP && value == 0 ? 0.0f : error;
    }
    if (WEIGHED)
      for (int64_t j = 0; j < size; ++j) errors[j] *= importance[begin + j];
    for (int64_t j = 0; j < size; ++j) sums[j] += double(errors[j]);
  }
  for (int64_t width = kPart / 2; width; width /= 2)
    for (int64_t j = 0; j < width; ++j) sums[j] += sums[j + width];
  return sums[0];
}

// Of 64 scales, the one with the least squared error of a row, each value weighed by its
// `importance` (null: all alike): edgeqat/quant/functional.py, mse_scale. `with_sign`: the value of
// largest magnitude is at the lowest code, and the scale has the opposite sign.
inline float mse_scale(const float* x, const float* importance, int64_t count, int bits,
                       bool with_sign) {
  const Levels levels(bits);
  float low = 0, high = 0;
  for (int64_t i = 0; i < count; ++i) {
    low = x[i] < low ? x[i] : low;
    high = x[i] > high ? x[i] : high;
  }
  const float peak = high >= -low ? high : with_sign ? low : -low;
  const float full = stored_scale(peak / (with_sign ? levels.least : levels.top()));
  const auto error = levels.offset != 0
                         ? (importance ? squared_error<true, true> : squared_error<true, false>)
                         : (importance ? squared_error<false, true> : squared_error<false, false>);
  float best = full;
  double least = 0;
  for (int step = 0; step < kScaleRatios; ++step) {
    const float ratio = float(1.0 - 0.85 * step / kScaleRatios);
    const float scale = from_half(to_half(stored_scale(full * ratio)));
    const double total = error(x, importance, count, scale, levels);
    if (step == 0 || total < least) {
      least = total;
      best = scale;
    }
  }
  return best;
}

// Gradients of `lsq` from that of its output: of x, and summed over the row of scale and beta.
inline SlopeSums lsq_backward(const float* x, const float* grad, int64_t count, float scale,
                              float beta, int bits, float* grad_x) {
  const Levels levels(bits);
  const float first = levels.least, last = levels.last();
  float scales[kLanes] = {}, betas[kLanes] = {};
  const auto one = [&](int64_t i, int j) {
    const float ratio = (x[i] - beta) / scale;
    const float level = nearest(levels, ratio);
    const bool inside = ratio >= first && ratio <= last;
    scales[j] += (inside ? level - ratio : level) * grad[i];
    betas[j] += inside ? 0.0f : grad[i];
    grad_x[i] = inside ? grad[i] : 0.0f;
  };
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    for (int j = 0; j < kLanes; ++j) one(i + j, j);
  for (int j = 0; i + j < count; ++j) one(i + j, j);
  return {sum_lanes(scales), sum_lanes(betas)};
}

// Marks the values beyond the outermost levels.
inline void mark_clipped(const float* x, int64_t count, float scale, const Levels& levels,
                         uint8_t* clipped) {
  const float a = scale * levels.least, b = scale * levels.last();
  const float low = a < b ? a : b, high = a < b ? b : a;
  for (int64_t i = 0; i < count; ++i) clipped[i] = x[i] < low || x[i] > high;
}

// A row with the scale that its largest magnitude gives, rounded to fp16 where a cache stores it.
// `clipped` may be null.
inline void fake_dynamic(const float* x, int64_t count, int bits, float clip, bool half_scale,
                         float* out, uint8_t* clipped) {
  const Levels levels(bits);
  const float peak = absmax(x, count) * clip;
  const float ratio = steps_in(peak, levels.top());
  const float scale = half_scale ? from_half(to_half(peak / levels.top())) : peak / levels.top();
  for (int64_t i = 0; i < count; ++i) out[i] = nearest(levels, x[i] * ratio) * scale;
  if (clipped) mark_clipped(x, count, scale, levels, clipped);
}

// A row of keys or values with the scale of least squared error.
inline void fake_searched(const float* x, int64_t count, int bits, float* out, uint8_t* clipped) {
  const Levels levels(bits);
  int8_t codes[kWidestGroup];
  const float scale = from_half(quantize_searched(x, count, bits, codes));
  for (int64_t i = 0; i < count; ++i) out[i] = (float(codes[i]) + levels.offset) * scale;
  if (clipped) mark_clipped(x, count, scale, levels, clipped);
}

}  // namespace
}  // namespace edgeqat
