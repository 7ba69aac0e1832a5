// Hadamard rotation in blocks (edgeqat/quant/hadamard.py): x H, H orthonormal, Sylvester's order.
#pragma once

#include <cstdint>

namespace edgeqat {

// Rotates `count` values in place in consecutive blocks of `block`, a power of two dividing count;
// less than 2 does nothing.
void rotate(float* x, int64_t count, int64_t block);

// Rotated block of rows of `length`: the largest power of two that divides it, at most 128.
int64_t rotation_block(int64_t length);

}  // namespace edgeqat
