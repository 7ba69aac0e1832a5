// What cuts a normalized text into words before the model sees them.
#pragma once

#include <memory>
#include <vector>

#include "json.h"
#include "pieces.h"

namespace edgeqat {

class PreTokenizer {
 public:
  struct Step {
    virtual ~Step() = default;
    virtual void apply(Pieces& pieces) const = 0;
  };

  PreTokenizer() = default;  // one piece
  // Of tokenizer.json; an Unsupported names what there is no step for.
  explicit PreTokenizer(const Json& json) { add(json); }

  void apply(Pieces& pieces) const {
    for (const auto& step : steps_) step->apply(pieces);
  }

 private:
  void add(const Json& json);

  std::vector<std::unique_ptr<const Step>> steps_;
};

// Whether a Metaspace of tokenizer.json puts its mark before texts.
enum class PrependScheme { never, first, always };
PrependScheme prepend_scheme(const Json& json);

}  // namespace edgeqat
