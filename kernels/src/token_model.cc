#include "token_model.h"

#include <cstdio>
#include <utility>

namespace edgeqat {

TokenModel::TokenModel(Vocabulary vocabulary) : vocabulary_(std::move(vocabulary)) {
  for (unsigned byte = 0; byte < 256; ++byte) {
    char name[8];
    std::snprintf(name, sizeof name, "<0x%02X>", byte);
    bytes_[byte] = vocabulary_.find(name);
  }
}

}  // namespace edgeqat
