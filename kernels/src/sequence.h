// One text that an engine reads and writes: its tokens' count, their widths, their keys and values.
#pragma once

#include <cstdint>
#include <vector>

#include "buffer.h"
#include "cache.h"
#include "config.h"
#include "widths.h"

namespace edgeqat {

class Sequence {
 public:
  // context 0: the longest sequence of the model.
  Sequence(const Config& config, int64_t context);

  int64_t position() const { return position_; }  // tokens so far
  int64_t context() const { return context_; }
  // Counts tokens whose keys and values are in all layers now.
  void advance(int64_t tokens) { position_ += tokens; }
  // Forgets the tokens from `position` on.
  void rewind(int64_t position);

  Widths& widths() { return widths_; }
  const Widths& widths() const { return widths_; }
  // [kv_head * streams per head], high ones first.
  std::vector<Stream>& streams(int64_t layer) { return streams_[layer]; }
  const std::vector<Stream>& streams(int64_t layer) const { return streams_[layer]; }

 private:
  int64_t context_, position_ = 0;
  Widths widths_;
  Buffer<uint8_t> cache_;
  std::vector<std::vector<Stream>> streams_;
};

// Tokens that a sequence appends, at the positions from sequence->position() on: rows row .. row +
// count - 1 of those that are computed at once.
struct Span {
  Sequence* sequence;
  const int32_t* ids;
  int64_t row, count;
};

}  // namespace edgeqat
