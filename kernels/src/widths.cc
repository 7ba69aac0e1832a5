#include "widths.h"

#include <algorithm>
#include <cmath>

namespace edgeqat {
namespace {

constexpr int64_t kModulus = 1 << 16;

// A fixed scatter of positions at a share, another one in each layer (token_importance.scattered).
bool scattered(int64_t position, int64_t layer, double share) {
  int64_t mixed = (position + 1) * 40503 + (layer + 1) * 30011;
  mixed = (mixed ^ (mixed >> 7)) * 48271 % 2147483647;
  mixed = (mixed ^ (mixed >> 11)) * 69621 % 2147483647;
  return (mixed >> 8) % kModulus < int64_t(std::nearbyint(share * kModulus));
}

// The share of each layer (token_importance.plan).
std::vector<double> shares_of(const AdaptiveSpec& spec, int64_t layers) {
  std::vector<double> shares(layers, spec.share);
  if (spec.rule != "layers") return shares;
  const double total = spec.share * double(layers - 1), whole = std::floor(total);
  std::fill(shares.begin(), shares.end(), 0.0);
  for (int64_t n = 0; n < int64_t(whole); ++n)
    shares[1 + int64_t((double(n) + 0.5) * double(layers - 1) / whole)] = 1;
  if (total > whole)
    for (int64_t layer = 1; layer < layers; ++layer)
      if (shares[layer] == 0) {
        shares[layer] = total - whole;
        break;
      }
  return shares;
}

}  // namespace

Widths::Widths(const Config& config, int64_t context)
    : adaptive_(!config.adaptive.rule.empty()),
      measured_(config.adaptive.measured()),
      reversed_(config.adaptive.rule == "reversed"),
      layers_(config.layers),
      heads_(config.heads),
      sinks_(config.sinks),
      context_(context),
      kv_bits_(config.kv_bits) {
  if (!adaptive_) return;
  shares_ = shares_of(config.adaptive, config.layers);
  high_ = Buffer<uint8_t>(layers_ * context, Pages::small);  // layers begin with the first tokens
  kept_ = Buffer<int32_t>(layers_ * (context + 1), Pages::small);
}

bool Widths::two_streams() const { return kv_bits_ < kHighBits && (adaptive_ || sinks_ > 0); }

int64_t Widths::most_high() const { return adaptive_ ? context_ : sinks_; }

void Widths::set(int64_t layer, int64_t position, bool high) {
  high_[layer * context_ + position] = high;
  int32_t* kept = kept_.data() + layer * (context_ + 1) + position;
  kept[1] = kept[0] + (high || position < sinks_);
}

void Widths::begin(int64_t first, int64_t count) {
  if (!adaptive_) return;
  const int64_t layers = measured_ ? 1 : layers_;
  for (int64_t layer = 0; layer < layers; ++layer)
    for (int64_t position = first; position < first + count; ++position)
      set(layer, position, layer == 0 || scattered(position, layer, shares_[layer]));
}

bool Widths::listens(int64_t layer) const {
  return measured_ && layer > 0 && layer < layers_;
}

void Widths::decide(int64_t layer, int64_t first, int64_t count, const float* to_first,
                    float threshold) {
  for (int64_t t = 0; t < count; ++t) {
    float sum = 0;
    for (int64_t head = 0; head < heads_; ++head) sum += to_first[t * heads_ + head];
    const float measure = sum / float(heads_) * float(first + t + 1);
    set(layer, first + t, (measure >= threshold) != reversed_);
  }
}

}  // namespace edgeqat
