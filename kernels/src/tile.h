// Tiles: where the code of a row and an input lies (docs/format.md), one code at a time.
//
// The kernels read whole tiles (product.h); this is the definition they are tested against, and
// what the key/value cache and the embedding use.
#pragma once

#include <cstdint>

namespace edgeqat {

// Values with one scale in the cache: a head, or part of a wide one.
constexpr int64_t kWidestGroup = 128;

// Inputs and bytes of a tile of 16 rows; 0 for a width that does not exist.
constexpr int64_t tile_inputs(int bits) {
  return bits == 16 ? 1 : bits == 8 ? 4 : bits == 4 ? 8 : bits == 2 || bits == 6 ? 16
         : bits == 1 || bits == 3 ? 32 : 0;
}

constexpr int64_t tile_bytes(int bits) {
  return bits == 16 ? 32 : bits == 6 || bits == 3 ? 192 : 64;
}

// Whether levels are code + 1/2: at 1 and 2 bit. Such codes enter products as 2c + 1.
constexpr bool half_step(int bits) { return bits <= 2; }

// What is added per input to a dot product of the stored, unsigned codes (doubled on the half-step
// grid) to make it one of the signed levels.
constexpr int32_t code_offset(int bits) {
  return half_step(bits) ? 1 - (1 << bits) : -(1 << (bits - 1));
}

inline int64_t tiles_of(int64_t inputs, int bits) {
  return (inputs + tile_inputs(bits) - 1) / tile_inputs(bits);
}

// Sets the code (signed) of a row in [0, 16) and an input of a tile row.
void set_code(uint8_t* tile_row, int bits, int64_t row, int64_t input, int code);

// Codes of one row, inputs first .. first + count - 1.
void set_row(uint8_t* tile_row, int bits, int64_t row, int64_t first, int64_t count,
             const int8_t* codes);

// Codes of one input, rows 0 .. count - 1; tile rows are row_bytes apart.
void set_column(uint8_t* tile_rows, int bits, int64_t row_bytes, int64_t input, int64_t count,
                const int8_t* codes);

// The code (signed) of a row in [0, 16) and an input of a tile row.
int get_code(const uint8_t* tile_row, int bits, int64_t row, int64_t input);

float from_half(uint16_t half);
uint16_t to_half(float value);  // round to nearest even

}  // namespace edgeqat
