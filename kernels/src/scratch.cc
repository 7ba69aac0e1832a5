#include "scratch.h"

#include "buffer.h"

namespace edgeqat {

uint8_t* scratch(int64_t bytes) {
  thread_local Buffer<uint8_t> memory;
  if (memory.size() < bytes) memory = Buffer<uint8_t>(bytes);
  return memory.data();
}

}  // namespace edgeqat
