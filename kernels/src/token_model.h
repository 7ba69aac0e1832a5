// A word to token ids: byte-pair merges (bpe.cc), or the likeliest tokens (unigram.cc).
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

#include "vocabulary.h"

namespace edgeqat {

class TokenModel {
 public:
  explicit TokenModel(Vocabulary vocabulary) : vocabulary_(std::move(vocabulary)) {}
  virtual ~TokenModel() = default;

  // Appends the ids of a word. Words that were seen before may be looked up.
  virtual void encode(std::string_view word, std::vector<int32_t>& ids) = 0;

  const Vocabulary& vocabulary() const { return vocabulary_; }

 protected:
  // The token <0xNN> of each byte, or kNoToken.
  std::array<int32_t, 256> byte_tokens() const;

  Vocabulary vocabulary_;
};

}  // namespace edgeqat
