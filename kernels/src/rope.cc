#include "rope.h"

#include <algorithm>
#include <cmath>

#include "error.h"

namespace edgeqat {
namespace {

constexpr double kPi = 3.14159265358979323846;

// Llama 3: low frequencies are divided by the factor, high ones kept, between them a ramp.
double llama3(double frequency, const RopeSpec& spec) {
  const double turns = spec.original_positions * frequency / (2 * kPi);
  if (turns < spec.low_frequency) return frequency / spec.factor;
  if (turns > spec.high_frequency) return frequency;
  const double share =
      (turns - spec.low_frequency) / (spec.high_frequency - spec.low_frequency);
  return (1 - share) * frequency / spec.factor + share * frequency;
}

// YaRN: pairs that turn often keep their frequency, slow ones are divided, between them a ramp over
// the numbers of the pairs.
double yarn(double frequency, int64_t pair, int64_t dim, const RopeSpec& spec) {
  const auto place = [&](double turns) {
    return double(dim) * std::log(spec.original_positions / (turns * 2 * kPi)) /
           (2 * std::log(spec.theta));
  };
  double low = place(spec.beta_fast), high = place(spec.beta_slow);
  if (spec.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, double(dim - 1));
  if (low == high) high += 0.001;
  const double slow = std::clamp((double(pair) - low) / (high - low), 0.0, 1.0);
  return frequency / spec.factor * slow + frequency * (1 - slow);
}

double scaled(double frequency, int64_t pair, int64_t dim, const RopeSpec& spec) {
  if (spec.type == "linear") return frequency / spec.factor;
  if (spec.type == "llama3") return llama3(frequency, spec);
  if (spec.type == "yarn") return yarn(frequency, pair, dim, spec);
  return spec.divisors.empty() ? frequency : frequency / spec.divisors[std::size_t(pair)];
}

}  // namespace

Rope::Rope(const RopeSpec& spec, int64_t head_dim, bool adjacent)
    : spec_(spec), adjacent_(adjacent) {
  const int64_t dim = int64_t(double(head_dim) * spec.partial);
  if (dim % 2 || (!spec.divisors.empty() && int64_t(spec.divisors.size()) != dim / 2))
    throw Error("rope_parameters: they do not fit a head of " + std::to_string(head_dim) +
                "; copy the folder again");
  for (int64_t i = 0; i < dim / 2; ++i) {
    const double frequency = std::pow(spec.theta, -2.0 * double(i) / double(dim));
    frequency_.push_back(float(scaled(frequency, i, dim, spec)));
  }
}

void Rope::angles(int64_t position, float* cosine, float* sine) const {
  const float factor = float(spec_.attention_factor);
  for (std::size_t i = 0; i < frequency_.size(); ++i) {
    const float angle = float(position) * frequency_[i];
    cosine[i] = std::cos(angle) * factor;
    sine[i] = std::sin(angle) * factor;
  }
}

void Rope::turn(float* x, const float* cosine, const float* sine) const {
  const int64_t count = pairs(), step = adjacent_ ? 2 : 1, apart = adjacent_ ? 1 : count;
  for (int64_t i = 0; i < count; ++i) {
    float *one = x + i * step, *other = one + apart;
    const float first = *one, second = *other;
    *one = first * cosine[i] - second * sine[i];
    *other = second * cosine[i] + first * sine[i];
  }
}

float Rope::query_factor(int64_t position) const {
  if (spec_.query_beta == 0) return 1;
  const double turns = std::floor(double(position) / spec_.original_positions);
  return float(1 + spec_.query_beta * std::log(1 + turns));
}

}  // namespace edgeqat
