// Elementwise operations, written once and compiled for every instruction set.
//
// Plain loops that the compiler vectorizes. Reductions keep 16 partial results on every instruction
// set, and nothing is contracted or reordered, so all of them give the same bits. Everything has
// internal linkage: two copies compiled for different machines must never be merged by the linker.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

#include "scratch.h"
#include "tile.h"

namespace edgeqat {
namespace {

constexpr float kSmallestAbsmax = 0x1p-100f;  // keeps top / absmax finite where a row is zero
constexpr int kLanes = 16;
constexpr int kCacheClips = 4;

// CACHE_CLIPS of edgeqat/quant/functional.py at 2, 3 and 4 bits.
constexpr float kClips[][kCacheClips] = {
    {0.4f, 0.48f, 0.56f, 0.65f}, {0.7f, 0.8f, 0.9f, 1.0f}, {0.8f, 0.88f, 0.96f, 1.04f}};

inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Round half to even for |x| < 2^22: the adder does it.
inline float round_even(float x) { return (x + 12582912.0f) - 12582912.0f; }

inline float clamped(float x, float low, float high) {
  x = x < low ? low : x;
  return x > high ? high : x;
}

// exp(x) for x in [-87, 88] to 2 units in the last place, 0 below.
inline float exponential(float x) {
  const float bounded = clamped(x, -87.0f, 88.0f);
  const float n = round_even(bounded * 1.44269504f);
  const float r = (bounded - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const float mantissa = p * r * r + r + 1.0f;
  const float value = mantissa * float_of(uint32_t(int32_t(n) + 127) << 23);
  return x < -87.0f ? 0.0f : value;
}

// Non-negative floats order like their bits, and integers may be compared in any order.
inline float absmax(const float* x, int64_t count) {
  uint32_t most = 0;
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t magnitude = bits_of(x[i]) & 0x7fffffff;
    most = magnitude > most ? magnitude : most;
  }
  return float_of(most);
}

// The value of largest magnitude, with its sign; of two equal magnitudes the positive one. Rotated
// by one bit with the sign reversed, floats order by magnitude first and by sign second.
inline float signed_peak(const float* x, int64_t count) {
  uint32_t most = 0;
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t turned = bits_of(x[i]) << 1 | (~bits_of(x[i]) >> 31);
    most = turned > most ? turned : most;
  }
  return float_of(most >> 1 | (~most << 31));
}

inline float sum_lanes(const float (&lanes)[kLanes]) {
  float total = 0;
  for (int j = 0; j < kLanes; ++j) total += lanes[j];
  return total;
}

template <int N>
inline double sum_halves(const double* x) {
  if constexpr (N == 1) return *x;
  else {
    double sums[N / 2];
    for (int j = 0; j < N / 2; ++j) sums[j] = x[j] + x[j + N / 2];
    return sum_halves<N / 2>(sums);
  }
}

// The levels code + offset of a width, in units of its step.
struct Levels {
  explicit Levels(int bits)
      : offset(half_step(bits) ? 0.5f : 0.0f),
        least(float(-(1 << (bits - 1)))),
        most(float((1 << (bits - 1)) - 1)) {}

  // The code nearest to x / step; the ends are integers, so bounding first changes nothing.
  float code(float ratio) const { return round_even(clamped(ratio - offset, least, most)); }
  float top() const { return most + offset; }
  float last() const { return most + 2 * offset; }  // the largest ratio that is not clipped

  float offset, least, most;
};

// How often a step goes into 1, where `edge` steps make m. torch computes edge / m as
// (1 / m) * edge: the same two roundings.
inline float steps_in(float m, float edge) {
  return 1.0f / (__builtin_fabsf(m) < kSmallestAbsmax ? kSmallestAbsmax : m) * edge;
}

inline float quantize(const float* x, int64_t count, int bits, float clip, int8_t* codes) {
  const Levels levels(bits);
  const float peak = absmax(x, count) * clip;
  const float ratio = steps_in(peak, levels.top());
  for (int64_t i = 0; i < count; ++i) codes[i] = int8_t(levels.code(x[i] * ratio));
  return peak / levels.top();
}

// Of the scales that the clips of 2 to 4 bits give, the one with the least squared error: the
// operations are those of edgeqat/quant/functional.py, quantize_searched.
inline uint16_t quantize_searched(const float* x, int64_t count, int bits, int8_t* codes) {
  const Levels levels(bits);
  const bool half = half_step(bits);
  const float edge = half ? levels.top() : levels.least;
  const float peak = half ? absmax(x, count) : signed_peak(x, count);
  double totals[kCacheClips];
  float ratios[kCacheClips];
  uint16_t scales[kCacheClips];
  for (int c = 0; c < kCacheClips; ++c) {
    const float m = peak * kClips[bits - 2][c];
    const float ratio = ratios[c] = steps_in(m, edge);
    const float step = from_half(scales[c] = to_half(m / edge));
    double lanes[kLanes] = {};
    const auto add = [&](int64_t i, double& lane) {
      const float error = (levels.code(x[i] * ratio) + levels.offset) * step - x[i];
      lane += half && x[i] == 0 ? 0.0f : error * error;
    };
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes)
      for (int j = 0; j < kLanes; ++j) add(i + j, lanes[j]);
    for (int j = 0; i + j < count; ++j) add(i + j, lanes[j]);
    totals[c] = sum_halves<kLanes>(lanes);
  }
  int best = -1;
  double least = std::numeric_limits<double>::infinity();
  for (int c = 0; c < kCacheClips; ++c) {
    best = totals[c] < least ? c : best;
    least = totals[c] < least ? totals[c] : least;
  }
  if (best < 0) {  // a row with NaN
    std::memset(codes, 0, size_t(count));
    return 0x7e00;
  }
  for (int64_t i = 0; i < count; ++i) codes[i] = int8_t(levels.code(x[i] * ratios[best]));
  return scales[best];
}

inline void rms_norm(const float* x, const float* weight, float epsilon, int64_t count,
                     float* out) {
  float lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    for (int j = 0; j < kLanes; ++j) lanes[j] += x[i + j] * x[i + j];
  for (int j = 0; i + j < count; ++j) lanes[j] += x[i + j] * x[i + j];
  const float factor = 1.0f / __builtin_sqrtf(sum_lanes(lanes) / float(count) + epsilon);
  for (i = 0; i < count; ++i) out[i] = x[i] * factor * weight[i];
}

inline float softmax(float* x, float factor, int64_t count) {
  float most[kLanes], lanes[kLanes] = {};
  for (int j = 0; j < kLanes; ++j) most[j] = x[0];
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    for (int j = 0; j < kLanes; ++j) most[j] = x[i + j] > most[j] ? x[i + j] : most[j];
  for (int j = 0; i + j < count; ++j) most[j] = x[i + j] > most[j] ? x[i + j] : most[j];
  float peak = most[0];
  for (int j = 1; j < kLanes; ++j) peak = most[j] > peak ? most[j] : peak;
  for (i = 0; i + kLanes <= count; i += kLanes)
    for (int j = 0; j < kLanes; ++j) {
      x[i + j] = exponential((x[i + j] - peak) * factor);
      lanes[j] += x[i + j];
    }
  for (int j = 0; i + j < count; ++j) {
    x[i + j] = exponential((x[i + j] - peak) * factor);
    lanes[j] += x[i + j];
  }
  return sum_lanes(lanes);
}

// 16 floats of any instruction set; the compiler takes as many registers as they need.
typedef float Vector __attribute__((vector_size(64)));

// One level of the transform inside a vector: lane j becomes x_j + x_{j+HALF} or x_{j-HALF} - x_j.
template <int HALF>
[[gnu::always_inline]] inline void butterfly(Vector& x) {
#define EDGEQAT_LANE(j) (j) ^ HALF
#define EDGEQAT_SIGN(j) ((j) & HALF ? -1.0f : 1.0f)
#define EDGEQAT_LANES(f) \
  f(0), f(1), f(2), f(3), f(4), f(5), f(6), f(7), f(8), f(9), f(10), f(11), f(12), f(13), f(14), \
      f(15)
  constexpr Vector kSign = {EDGEQAT_LANES(EDGEQAT_SIGN)};
  x = __builtin_shufflevector(x, x, EDGEQAT_LANES(EDGEQAT_LANE)) + x * kSign;
#undef EDGEQAT_LANES
#undef EDGEQAT_SIGN
#undef EDGEQAT_LANE
}

// Sums and differences of values 1, 2, 4, ... apart; `count` is a power of two.
template <typename Value>
inline __attribute__((always_inline)) void butterflies(Value* x, int64_t count) {
  for (int64_t half = 1; half < count; half *= 2)
    for (int64_t i = 0; i < count; i += 2 * half)
      for (int64_t j = i; j < i + half; ++j) {
        const Value a = x[j], b = x[j + half];
        x[j] = a + b;
        x[j + half] = a - b;
      }
}

// N vectors of 16.
template <int N>
inline void rotate_vectors(float* row) {
  Vector x[N];
  std::memcpy(x, row, sizeof x);
  for (auto& v : x) {
    butterfly<1>(v);
    butterfly<2>(v);
    butterfly<4>(v);
    butterfly<8>(v);
  }
  butterflies(x, N);
  std::memcpy(row, x, sizeof x);
}

inline void rotate(float* x, int64_t count, int64_t block) {
  if (block < 2) return;
  for (float* row = x; row < x + count; row += block) switch (block) {
      case 16: rotate_vectors<1>(row); break;
      case 32: rotate_vectors<2>(row); break;
      case 64: rotate_vectors<4>(row); break;
      case 128: rotate_vectors<8>(row); break;
      default: butterflies(row, block);
    }
  const float norm = float(1.0 / __builtin_sqrt(double(block)));
  for (int64_t i = 0; i < count; ++i) x[i] *= norm;
}

inline void swiglu(const float* gate, const float* up, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i)
    out[i] = gate[i] / (1.0f + exponential(-gate[i])) * up[i];
}

// tanh by the logistic function: gelu(x) = x * logistic(2 * sqrt(2 / pi) * (x + 0.044715 x^3)).
inline void geglu(const float* gate, const float* up, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) {
    const float x = gate[i], inner = 1.5957691216f * (x + 0.044715f * x * x * x);
    out[i] = x / (1.0f + exponential(-inner)) * up[i];
  }
}

// Sum of codes.
inline int32_t sum(const int8_t* codes, int64_t count) {
  int32_t total = 0;
  for (int64_t i = 0; i < count; ++i) total += codes[i];
  return total;
}

// Words of T rows, T at a time: to[k][t] = rows[t][k].
template <int T>
inline void interleave_rows(const int32_t* rows, int64_t words, int32_t* to) {
  for (int64_t k = 0; k < words; ++k)
    for (int t = 0; t < T; ++t) to[k * T + t] = rows[t * words + k];
}

inline void interleave(const int32_t* rows, int64_t tokens, int64_t words, int32_t* to) {
  switch (tokens) {
    case 1: std::memcpy(to, rows, words * sizeof *to); break;
    case 2: interleave_rows<2>(rows, words, to); break;
    case 4: interleave_rows<4>(rows, words, to); break;
    case 12: interleave_rows<12>(rows, words, to); break;
    default:
      for (int64_t k = 0; k < words; ++k)
        for (int64_t t = 0; t < tokens; ++t) to[k * tokens + t] = rows[t * words + k];
  }
}

// `count` is a multiple of 16; scales have signs. 15 bits keep what an attention weight contributes
// to 3e-5 of the largest one: bytes in [-127, 127] and [-64, 63], as every integer kernel wants.
template <class S>
float split(const float* p, const uint16_t* scale, int64_t count, int8_t* high, int8_t* low) {
  constexpr float kLevels = 127 * 128 + 63;
  float* products = reinterpret_cast<float*>(scratch(count * int64_t(sizeof(float))));
  for (int64_t i = 0; i < count; i += kLanes)
    S::store(products + i, S::multiply(S::load(p + i), S::half16(scale + i)));
  const float most = absmax(products, count);
  const float ratio = kLevels / (most < kSmallestAbsmax ? kSmallestAbsmax : most);
  for (int64_t i = 0; i < count; ++i) {
    const int32_t level = int32_t(round_even(products[i] * ratio));
    high[i] = int8_t((level + 64) >> 7);
    low[i] = int8_t(level - high[i] * 128);
  }
  return most / kLevels;
}

}  // namespace
}  // namespace edgeqat
