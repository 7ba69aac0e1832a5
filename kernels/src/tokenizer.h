// Text to token ids and back, as the `tokenizers` library does it with the same tokenizer.json:
// added tokens are cut out, the rest is normalized, split into words and encoded word by word.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "added_tokens.h"
#include "normalizer.h"
#include "post_processor.h"
#include "pre_tokenizer.h"
#include "token_decoder.h"
#include "token_model.h"

namespace edgeqat {

class Tokenizer {
 public:
  // Of a folder with tokenizer.json, or of that file's text. What is not supported is Unsupported.
  static Tokenizer open(const std::string& folder);
  static Tokenizer parse(std::string_view text);

  // special: with what the tokenizer puts around a text. Broken UTF-8 counts as U+FFFD.
  std::vector<int32_t> encode(std::string_view text, bool special);

  // Valid UTF-8; ids without a token are left out, special tokens only where `special` is false.
  std::string decode(const int32_t* ids, std::size_t count, bool special) const;

 private:
  Tokenizer() = default;
  void encode_text(std::string_view text, bool first, std::vector<int32_t>& ids);

  Normalizer normalizer_;
  PreTokenizer pre_tokenizer_;
  std::unique_ptr<TokenModel> model_;
  AddedTokens added_;
  PostProcessor post_processor_;
  TokenDecoder decoder_;
};

// The model of tokenizer.json, read without a tree of its tokens (there may be 300,000).
std::unique_ptr<TokenModel> read_token_model(std::string_view text);

}  // namespace edgeqat
