// A template's source in tokens: text as it is written, and what stands inside {% %} and {{ }}.
// Like transformers, with trim_blocks and lstrip_blocks: the line break behind a block goes, and so
// do the spaces that alone stand before it.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace edgeqat {

struct JinjaToken {
  // begin and end: of a block {% %}, or of an output {{ }}
  enum class Kind { text, block_begin, block_end, output_begin, output_end, name, string, integer,
                    real, symbol, end };
  Kind kind;
  std::string text;
};

std::vector<JinjaToken> jinja_tokens(std::string_view source);

}  // namespace edgeqat
