// Tokens that are found in a text before it is split: special ones such as <|im_end|>, and words
// that were added to a vocabulary.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "json.h"
#include "normalizer.h"
#include "trie.h"
#include "vocabulary.h"

namespace edgeqat {

class AddedTokens {
 public:
  struct Segment {
    int32_t id;  // kNoToken: text between added tokens
    std::size_t begin, end;
  };

  AddedTokens() = default;
  // `added_tokens` of tokenizer.json.
  AddedTokens(const Json& list, const Vocabulary& vocabulary, const Normalizer& normalizer);

  // Cuts a text at the tokens that are matched before it is normalized, or at those behind.
  std::vector<Segment> cut(std::string_view text, bool normalized) const;

  const std::string* shown(int32_t id) const;  // its text; nullptr: none has this id
  bool special(int32_t id) const;
  int32_t find(const std::string& token) const;  // or kNoToken

 private:
  struct Token {
    int32_t id;
    std::string shown;  // normalized where it is matched so, as the `tokenizers` library has it
    bool special, single_word, left, right;  // left, right: takes the spaces beside it
  };

  const Token* with(int32_t id) const;

  std::vector<Token> tokens_;
  std::map<int32_t, std::size_t> by_id_;
  std::map<std::string, int32_t> by_text_;
  Trie before_, behind_;  // of indices of tokens_
};

}  // namespace edgeqat
