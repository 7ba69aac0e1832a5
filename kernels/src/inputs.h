// Activations as the products take them: rotated, quantized per token, interleaved in blocks.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "buffer.h"
#include "isa.h"
#include "pool.h"

namespace edgeqat {

// How rows of `columns` enter a product. Layers that agree on it share one set of codes.
struct InputSpec {
  int64_t columns = 0;
  int64_t group_size = 0;
  int64_t groups = 1;
  int64_t rotation = 0;  // block of the Hadamard rotation, 0: none
  int bits = kHalfBits;  // kHalfBits: float values

  bool operator==(const InputSpec& other) const {
    return columns == other.columns && group_size == other.group_size &&
           rotation == other.rotation && bits == other.bits;
  }
};

// The fraction of absmax that the largest level reaches (edgeqat/quant/dynamic.py).
float activation_clip(int bits);

inline int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// Rotated block of queries and keys of a head: the largest power of two that divides its size, at
// most 128.
inline int64_t rotation_block(int64_t head_dim) {
  return std::min<int64_t>(head_dim & -head_dim, 128);
}

class InputBuffer {
 public:
  // Rows x[t * stride], valid until the next call. Without a pool the caller does all the work.
  // Rows with a flag in `high` are quantized to 8 bit.
  const Inputs& fill(const Isa& isa, Pool* pool, const float* x, int64_t tokens, int64_t stride,
                     const InputSpec& spec, const uint8_t* high = nullptr);

  // Rows of codes given as they are (already signed, one group table entry per group).
  struct Rows {
    int8_t* codes;   // [tokens][stride]; the caller fills them, zeros behind `columns`
    float* scale;    // [tokens]
    int64_t stride;
  };
  Rows rows(int64_t tokens, int64_t columns);
  const Inputs& interleave(const Isa& isa, int64_t tokens, const InputSpec& spec);

  // The same for float values: interleaves x[t * stride].
  const Inputs& floats(const Isa& isa, Pool* pool, const float* x, int64_t tokens, int64_t stride,
                       int64_t columns);

 private:
  void quantize_row(const Isa& isa, const float* x, const InputSpec& spec, int bits, int64_t t);
  void interleave_block(const Isa& isa, const InputSpec& spec, int64_t first, int64_t tokens);
  void reserve(int64_t tokens, int64_t stride, int64_t groups);

  Buffer<int8_t> rows_, codes_;
  Buffer<float> values_, scale_, rotated_;
  Buffer<int32_t> sums_;
  Inputs inputs_;
};

}  // namespace edgeqat
