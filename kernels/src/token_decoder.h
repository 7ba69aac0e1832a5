// Tokens back to text.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "json.h"

namespace edgeqat {

class TokenDecoder {
 public:
  using Tokens = std::vector<std::string>;
  struct Step {
    virtual ~Step() = default;
    virtual void apply(Tokens& tokens) const = 0;
  };

  TokenDecoder() = default;  // tokens with a space between them
  // Of tokenizer.json; an Unsupported names what there is no step for.
  explicit TokenDecoder(const Json& json) { add(json), joins_ = true; }

  // Valid UTF-8.
  std::string text(Tokens tokens) const;

 private:
  void add(const Json& json);

  std::vector<std::unique_ptr<const Step>> steps_;
  bool joins_ = false;  // without spaces
};

}  // namespace edgeqat
