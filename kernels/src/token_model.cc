#include "token_model.h"

#include <cstdio>

namespace edgeqat {

std::array<int32_t, 256> TokenModel::byte_tokens() const {
  std::array<int32_t, 256> found;
  for (unsigned byte = 0; byte < 256; ++byte) {
    char name[8];
    std::snprintf(name, sizeof name, "<0x%02X>", byte);
    found[byte] = vocabulary_.find(name);
  }
  return found;
}

}  // namespace edgeqat
