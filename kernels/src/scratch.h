// Working memory of the calling thread: grows, is kept, and is freed with the thread.
#pragma once

#include <cstdint>

namespace edgeqat {

// At least `bytes` on a boundary of 64; what an earlier call returned is no longer valid.
uint8_t* scratch(int64_t bytes);

}  // namespace edgeqat
