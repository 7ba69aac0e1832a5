// Which tokens are kept at 8 bit: the first ones of a sequence in the cache (sinks), and in an
// adaptive model the ones that edgeqat/nn/token_importance.py chooses, in a whole decoder layer.
//
//     high  <=>  (position + 1) * mean over heads of the attention to the first token >= threshold
//
// A layer is decided by the attention of the layer before it, when its tokens are computed, and
// every token keeps its width. Layer 0 has none before it: all its tokens are high.
#pragma once

#include <cstdint>
#include <vector>

#include "buffer.h"
#include "config.h"

namespace edgeqat {

constexpr int kHighBits = 8;

class Widths {
 public:
  Widths(const Config& config, int64_t context);

  // The cache has a stream of high tokens beside that of the scheme's width.
  bool two_streams() const;
  int64_t most_high() const;  // tokens of a high stream

  // Tokens first .. first + count - 1 begin; what does not depend on attention is decided.
  void begin(int64_t first, int64_t count);
  // `layer` waits for the attention of the one before.
  bool listens(int64_t layer) const;
  // From the attention [count][heads] to the first token in the layer before.
  void decide(int64_t layer, int64_t first, int64_t count, const float* to_first, float threshold);

  // Flags of the tokens from `first` on whose layer inputs and queries are high; null: none.
  const uint8_t* high(int64_t layer, int64_t first) const {
    return adaptive_ ? high_.data() + layer * context_ + first : nullptr;
  }
  // How many of the first `tokens` tokens the high stream holds.
  int64_t kept_high(int64_t layer, int64_t tokens) const {
    if (!adaptive_) return tokens < sinks_ ? tokens : sinks_;
    return kept_[layer * (context_ + 1) + tokens];
  }

 private:
  void set(int64_t layer, int64_t position, bool high);

  bool adaptive_, measured_, reversed_;
  int64_t layers_, heads_, sinks_, context_;
  int kv_bits_;
  std::vector<double> shares_;  // of each layer, by the rules that measure nothing
  Buffer<uint8_t> high_;        // [layer][context]
  Buffer<int32_t> kept_;        // [layer][context + 1]
};

}  // namespace edgeqat
