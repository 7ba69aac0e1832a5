#include "cache.h"

#include <algorithm>

#include "inputs.h"
#include "tile.h"

namespace edgeqat {
namespace {

constexpr int64_t kValueGroup = 16384;  // tokens whose int32 sum cannot overflow

}  // namespace

int64_t StreamShape::key_row_bytes() const { return tiles_of(head_dim, bits) * tile_bytes(bits); }

int64_t StreamShape::value_row_bytes() const { return tiles_of(capacity, bits) * tile_bytes(bits); }

int64_t StreamShape::bytes() const {
  return capacity / kRows * key_row_bytes() + value_rows() * value_row_bytes() +
         2 * round_up(capacity * groups() * 2, 64);
}

Stream::Stream(const StreamShape& shape, uint8_t* memory) : shape_(shape) {
  keys_ = memory;
  values_ = keys_ + shape.capacity / kRows * shape.key_row_bytes();
  uint8_t* scales = values_ + shape.value_rows() * shape.value_row_bytes();
  key_scales_ = reinterpret_cast<uint16_t*>(scales);
  value_scales_ =
      reinterpret_cast<uint16_t*>(scales + round_up(shape.capacity * shape.groups() * 2, 64));
}

void Stream::append(const Isa& isa, const float* key, const float* value) {
  if (shape_.bits == kHalfBits) return append_half(key, value);
  const int64_t token = size_++, row = token % kRows, tile_row = token / kRows;
  const int bits = shape_.bits;
  uint8_t* key_tiles = keys_ + tile_row * shape_.key_row_bytes();
  int8_t codes[kWidestGroup];
  for (int64_t g = 0; g < groups(); ++g) {
    const int64_t first = g * group(), count = std::min(group(), shape_.head_dim - first);
    const auto quantize = [&](const float* x) {
      if (bits <= 4) return isa.quantize_searched(x + first, count, bits, codes);
      return to_half(isa.quantize(x + first, count, bits, 1.0f, codes));
    };
    key_scales_[(tile_row * groups() + g) * kRows + row] = quantize(key);
    set_row(key_tiles, bits, row, first, count, codes);
    value_scales_[g * shape_.capacity + token] = quantize(value);
    set_column(values_ + first / kRows * shape_.value_row_bytes(), bits, shape_.value_row_bytes(),
               token, count, codes);
  }
}

void Stream::append_half(const float* key, const float* value) {
  const int64_t token = size_++;
  uint16_t* key_row = reinterpret_cast<uint16_t*>(keys_ + token / kRows * shape_.key_row_bytes());
  for (int64_t d = 0; d < shape_.head_dim; ++d) {
    key_row[d * kRows + token % kRows] = to_half(key[d]);
    uint8_t* value_row = values_ + d / kRows * shape_.value_row_bytes();
    reinterpret_cast<uint16_t*>(value_row)[token * kRows + d % kRows] = to_half(value[d]);
  }
}

Matrix Stream::keys(int64_t first, int64_t tokens) const {
  Matrix made;
  made.tiles = keys_ + first / kRows * shape_.key_row_bytes();
  made.scales = shape_.bits == kHalfBits ? nullptr : key_scales_ + first * groups();
  made.rows = tokens;
  made.columns = shape_.head_dim;
  made.group_size = group();
  made.groups = groups();
  made.tile_row_bytes = shape_.key_row_bytes();
  made.bits = shape_.bits;
  return made;
}

Matrix Stream::values(int64_t first, int64_t tokens, int64_t index) const {
  Matrix made;
  const int64_t row = index * group();
  made.tiles = values_ + row / kRows * shape_.value_row_bytes() +
               tiles_of(first, shape_.bits) * tile_bytes(shape_.bits);
  made.rows = std::min(group(), shape_.head_dim - row);
  made.columns = tokens;
  made.group_size = kValueGroup;
  made.groups = (tokens + kValueGroup - 1) / kValueGroup;
  made.tile_row_bytes = shape_.value_row_bytes();
  made.bits = shape_.bits;
  return made;
}

}  // namespace edgeqat
