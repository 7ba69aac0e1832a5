// What is done to a text before it is split: normal forms, small letters, replacements.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "json.h"
#include "split_pattern.h"

namespace edgeqat {

class Normalizer {
 public:
  struct Step {
    virtual ~Step() = default;
    // The new text. `first` becomes false where its beginning was removed.
    virtual std::string apply(std::string text, bool& first) const = 0;
  };

  Normalizer() = default;  // does nothing
  // Of tokenizer.json; an Unsupported names what there is no step for.
  explicit Normalizer(const Json& json);

  std::string apply(std::string text, bool& first) const;

 private:
  void add(const Json& json);

  std::vector<std::unique_ptr<const Step>> steps_;
};

// A pattern of tokenizer.json: {"String": ...} or {"Regex": ...}.
SplitPattern pattern_of(const Json& json, const std::string& where);

// Every match of the pattern becomes `content`.
std::string replaced(const std::string& text, const SplitPattern& pattern,
                     const std::string& content);

}  // namespace edgeqat
