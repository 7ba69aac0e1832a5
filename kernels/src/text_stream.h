// The text of ids that come one by one. Bytes that are no whole character yet are held back. The
// parts together are the text of all ids, unless broken bytes follow whole characters in a row of
// tokens <0xNN>, where the decoder takes the whole row back.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tokenizer.h"

namespace edgeqat {

class TextStream {
 public:
  // special: with the text of special tokens.
  TextStream(const Tokenizer& tokenizer, bool special) : tokenizer_(tokenizer), special_(special) {}

  std::string next(int32_t id);  // what one more id adds
  std::string end();             // what was held back; the stream begins anew

 private:
  std::string text(std::size_t count) const;
  std::string added(const std::string& all, std::size_t size) const;

  const Tokenizer& tokenizer_;
  bool special_;
  std::vector<int32_t> ids_;  // those whose text came out last, and those behind
  std::size_t known_ = 0;     // of ids_: those whose text is out
  std::size_t shown_ = 0;     // bytes of the text of ids_ that are out
};

}  // namespace edgeqat
