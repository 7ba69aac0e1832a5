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
  explicit TokenModel(Vocabulary vocabulary);
  virtual ~TokenModel() = default;

  // Appends the ids of a word. Words that were seen before may be looked up.
  virtual void encode(std::string_view word, std::vector<int32_t>& ids) = 0;

  const Vocabulary& vocabulary() const { return vocabulary_; }

 protected:
  // Calls each(id) for the token <0xNN> of every byte of a text; false where one has none.
  template <class Each>
  bool spell_bytes(std::string_view text, const Each& each) const {
    const auto token_of = [&](char byte) { return bytes_[static_cast<unsigned char>(byte)]; };
    for (const char byte : text)
      if (token_of(byte) == kNoToken) return false;
    for (const char byte : text) each(token_of(byte));
    return true;
  }

  Vocabulary vocabulary_;

 private:
  std::array<int32_t, 256> bytes_;  // the token of each byte, or kNoToken
};

}  // namespace edgeqat
