// How fast this machine reads memory: the limit of decoding, measured.
#pragma once

#include <cstdint>

namespace edgeqat {

// Bytes a second of `threads` (0: physical cores) that each sum up their part of `bytes` in a plain
// loop; the best of several passes.
double read_speed(int64_t bytes, int threads);

}  // namespace edgeqat
