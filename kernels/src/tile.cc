#include "tile.h"

#include <cstring>

namespace edgeqat {
namespace {

// Byte of a row and an input inside a run of planes of `width` bits, and the bit it starts at.
struct Place {
  int64_t byte;
  int shift;
};

inline Place place(int width, int64_t row, int64_t input) {
  const int64_t inputs = 32 / width;  // of one 64-byte plane
  const int64_t inside = input % inputs;
  return {64 * (input / inputs) + 4 * row + inside % 4, int(width * (inside / 4))};
}

// Widths of the planes of a tile, low bits first; the second is 0 where there is one plane.
struct Planes {
  int low, high;
};

Planes planes(int bits) {
  if (bits == 6) return {4, 2};
  if (bits == 3) return {2, 1};
  return {bits, 0};
}

inline void set_field(uint8_t* plane, int width, int64_t row, int64_t input, int value) {
  const Place spot = place(width, row, input);
  const int mask = ((1 << width) - 1) << spot.shift;
  plane[spot.byte] = uint8_t((plane[spot.byte] & ~mask) | (value << spot.shift & mask));
}

// Widths of one plane, known to the compiler.
template <int WIDTH>
void set_row_of(uint8_t* tile_row, int64_t row, int64_t first, int64_t count, const int8_t* codes) {
  constexpr int64_t kInputs = 32 / WIDTH;  // a row's word in a plane
  constexpr uint32_t kEvery = 0x01010101u, kMask = (1u << WIDTH) - 1, kSign = 1u << (WIDTH - 1);
  int64_t i = 0;
  for (; first % kInputs == 0 && i + kInputs <= count; i += kInputs) {
    uint32_t word = 0;
    for (int64_t k = 0; k < kInputs / 4; ++k) {
      uint32_t four;
      std::memcpy(&four, codes + i + 4 * k, 4);
      word |= ((four & kEvery * kMask) ^ kEvery * kSign) << (WIDTH * k);
    }
    std::memcpy(tile_row + 64 * ((first + i) / kInputs) + 4 * row, &word, 4);
  }
  for (; i < count; ++i)
    set_field(tile_row, WIDTH, row, first + i, codes[i] + (1 << (WIDTH - 1)));
}

template <int WIDTH>
void set_column_of(uint8_t* tile_rows, int64_t row_bytes, int64_t input, int64_t count,
                   const int8_t* codes) {
  constexpr int64_t kInputs = 32 / WIDTH;
  const int64_t inside = input % kInputs;
  const int shift = int(8 * (inside % 4) + WIDTH * (inside / 4));
  const uint32_t mask = ((1u << WIDTH) - 1) << shift;
  int64_t row = 0;
  for (; row + 16 <= count; row += 16) {  // the words of 16 rows are a plane
    uint8_t* plane = tile_rows + row / 16 * row_bytes + 64 * (input / kInputs);
    uint32_t words[16];
    std::memcpy(words, plane, sizeof words);
    for (int r = 0; r < 16; ++r)
      words[r] = (words[r] & ~mask) | uint32_t(codes[row + r] + (1 << (WIDTH - 1))) << shift;
    std::memcpy(plane, words, sizeof words);
  }
  for (; row < count; ++row)
    set_field(tile_rows + row / 16 * row_bytes, WIDTH, row % 16, input,
              codes[row] + (1 << (WIDTH - 1)));
}

int get_field(const uint8_t* plane, int width, int64_t row, int64_t input) {
  const Place spot = place(width, row, input);
  return plane[spot.byte] >> spot.shift & ((1 << width) - 1);
}

}  // namespace

void set_code(uint8_t* tile_row, int bits, int64_t row, int64_t input, int code) {
  uint8_t* tile = tile_row + input / tile_inputs(bits) * tile_bytes(bits);
  const int64_t inside = input % tile_inputs(bits);
  const Planes width = planes(bits);
  const int stored = code + (1 << (bits - 1));
  set_field(tile, width.low, row, inside, stored & ((1 << width.low) - 1));
  if (width.high) set_field(tile + 128, width.high, row, inside, stored >> width.low);
}

void set_row(uint8_t* tile_row, int bits, int64_t row, int64_t first, int64_t count,
             const int8_t* codes) {
  if (bits == 8) return set_row_of<8>(tile_row, row, first, count, codes);
  if (bits == 4) return set_row_of<4>(tile_row, row, first, count, codes);
  if (bits == 2) return set_row_of<2>(tile_row, row, first, count, codes);
  for (int64_t i = 0; i < count; ++i) set_code(tile_row, bits, row, first + i, codes[i]);
}

void set_column(uint8_t* tile_rows, int bits, int64_t row_bytes, int64_t input, int64_t count,
                const int8_t* codes) {
  if (bits == 8) return set_column_of<8>(tile_rows, row_bytes, input, count, codes);
  if (bits == 4) return set_column_of<4>(tile_rows, row_bytes, input, count, codes);
  if (bits == 2) return set_column_of<2>(tile_rows, row_bytes, input, count, codes);
  for (int64_t row = 0; row < count; ++row)
    set_code(tile_rows + row / 16 * row_bytes, bits, row % 16, input, codes[row]);
}

int get_code(const uint8_t* tile_row, int bits, int64_t row, int64_t input) {
  const uint8_t* tile = tile_row + input / tile_inputs(bits) * tile_bytes(bits);
  const int64_t inside = input % tile_inputs(bits);
  const Planes width = planes(bits);
  int stored = get_field(tile, width.low, row, inside);
  if (width.high) stored |= get_field(tile + 128, width.high, row, inside) << width.low;
  return stored - (1 << (bits - 1));
}

float from_half(uint16_t half) {
  const uint32_t sign = uint32_t(half & 0x8000) << 16, exponent = half >> 10 & 31;
  uint32_t mantissa = half & 1023, bits;
  if (exponent == 31) {
    bits = sign | 0x7f800000 | mantissa << 13;
  } else if (exponent) {
    bits = sign | (exponent + 112) << 23 | mantissa << 13;
  } else {
    const float value = float(mantissa) * 0x1p-24f;  // subnormal: exact in float32
    return sign ? -value : value;
  }
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

uint16_t to_half(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t sign = bits >> 16 & 0x8000;
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) return uint16_t(sign | 0x7e00);
  if (bits >= 0x47800000) return uint16_t(sign | 0x7c00);  // 65536 and above: infinity
  if (bits < 0x38800000) {                                 // below 2^-14: subnormal
    float magnitude;
    std::memcpy(&magnitude, &bits, sizeof magnitude);
    magnitude += 0.5f;  // the float adder rounds to steps of 2^-24, half to even
    std::memcpy(&bits, &magnitude, sizeof bits);
    return uint16_t(sign | (bits - 0x3f000000));
  }
  const uint32_t odd = bits >> 13 & 1;  // may carry into the exponent, up to infinity: as it should
  return uint16_t(sign | ((bits - 0x38000000 + 0xfff + odd) >> 13));
}

}  // namespace edgeqat
