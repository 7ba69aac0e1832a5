#include "rope.h"

#include <cmath>

namespace edgeqat {
namespace {

constexpr double kPi = 3.14159265358979323846;

// Llama 3: low frequencies are divided by the factor, high ones kept, between them a ramp.
double scaled(double frequency, const RopeSpec& spec) {
  if (spec.type == "linear") return frequency / spec.factor;
  if (spec.type != "llama3") return frequency;
  const double turns = spec.original_positions * frequency / (2 * kPi);
  if (turns < spec.low_frequency) return frequency / spec.factor;
  if (turns > spec.high_frequency) return frequency;
  const double share =
      (turns - spec.low_frequency) / (spec.high_frequency - spec.low_frequency);
  return (1 - share) * frequency / spec.factor + share * frequency;
}

}  // namespace

Rope::Rope(const RopeSpec& spec, int64_t head_dim) {
  for (int64_t i = 0; i < head_dim / 2; ++i)
    frequency_.push_back(
        float(scaled(std::pow(spec.theta, -2.0 * double(i) / double(head_dim)), spec)));
}

void Rope::angles(int64_t position, float* cosine, float* sine) const {
  for (std::size_t i = 0; i < frequency_.size(); ++i) {
    const float angle = float(position) * frequency_[i];
    cosine[i] = std::cos(angle);
    sine[i] = std::sin(angle);
  }
}

void Rope::turn(float* x, const float* cosine, const float* sine, int64_t head_dim) {
  const int64_t half = head_dim / 2;
  for (int64_t i = 0; i < half; ++i) {
    const float first = x[i], second = x[i + half];
    x[i] = first * cosine[i] - second * sine[i];
    x[i + half] = second * cosine[i] + first * sine[i];
  }
}

}  // namespace edgeqat
