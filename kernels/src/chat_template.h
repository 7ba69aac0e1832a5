// The chat template of a folder: messages to the text that the model was trained on, as
// transformers' apply_chat_template gives it.
#pragma once

#include <string>
#include <string_view>

#include "jinja_template.h"

namespace edgeqat {

class ChatTemplate {
 public:
  // chat_template.jinja, or `chat_template` of tokenizer_config.json.
  static ChatTemplate open(const std::string& folder);

  ChatTemplate(std::string_view source, Value::Dict tokens)
      : template_(source), tokens_(std::move(tokens)) {}

  // messages: JSON, [{"role": "user", "content": "Hello"}, ...]
  std::string apply(std::string_view messages, bool add_generation_prompt) const;

 private:
  JinjaTemplate template_;
  Value::Dict tokens_;  // bos_token, eos_token ...
};

// A value of JSON; of a key that is there twice the later value counts, as in Python.
Value value_of_json(std::string_view text, const std::string& what);

}  // namespace edgeqat
