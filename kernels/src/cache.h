// Keys and values of one head, packed as they arrive, in the tiles the products read.
//
// Keys: rows are tokens, inputs are head dimensions, scales as in a weight matrix. Values: rows are
// head dimensions, inputs are tokens, one fp16 scale per token (and group of dimensions). So scores
// and weighted sums are products on packed codes and nothing is ever dequantized. A head has one
// stream per width; a token is appended to exactly one of them, in order.
#pragma once

#include <cstdint>

#include "isa.h"

namespace edgeqat {

struct StreamShape {
  int bits = 0;
  int64_t head_dim = 0;
  int64_t capacity = 0;  // tokens, a multiple of 32

  // One scale per token, or per token and 32 dimensions where the head is wide.
  int64_t group() const { return head_dim <= 128 ? head_dim : 32; }
  int64_t groups() const { return (head_dim + group() - 1) / group(); }
  int64_t key_row_bytes() const;    // of 16 tokens
  int64_t value_row_bytes() const;  // of 16 dimensions
  int64_t value_rows() const { return (head_dim + kRows - 1) / kRows; }
  int64_t bytes() const;            // of a whole stream, a multiple of 64
};

class Stream {
 public:
  // `memory` holds shape.bytes(), zeroed and on a boundary of 64.
  Stream(const StreamShape& shape, uint8_t* memory);

  void append(const Isa& isa, const float* key, const float* value);
  void truncate(int64_t tokens) { size_ = tokens; }

  int bits() const { return shape_.bits; }
  int64_t groups() const { return shape_.groups(); }
  int64_t group() const { return shape_.group(); }

  // Of `tokens` tokens from `first` on, a multiple of 32.
  Matrix keys(int64_t first, int64_t tokens) const;
  Matrix values(int64_t first, int64_t tokens, int64_t group) const;
  const uint16_t* value_scales(int64_t group) const {
    return value_scales_ + group * shape_.capacity;
  }

 private:
  void append_half(const float* key, const float* value);

  StreamShape shape_;
  int64_t size_ = 0;
  uint8_t *keys_, *values_;
  uint16_t *key_scales_, *value_scales_;  // [capacity/16][groups][16], [groups][capacity]
};

}  // namespace edgeqat
