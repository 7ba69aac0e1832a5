// What a tokenizer puts around the ids of a text, such as a token for its beginning.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "json.h"

namespace edgeqat {

class PostProcessor {
 public:
  PostProcessor() = default;  // nothing
  // Of tokenizer.json; an Unsupported names what is not supported.
  explicit PostProcessor(const Json& json) { add(json); }

  std::vector<int32_t> apply(const std::vector<int32_t>& ids) const;

 private:
  void add(const Json& json);
  void add_template(const Json& json);

  std::vector<int32_t> before_, behind_;
};

}  // namespace edgeqat
