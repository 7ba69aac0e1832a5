// What a character is (letter, number, space ...), its small letter, and the normal forms of text.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "flat_map.h"

namespace edgeqat {

// Bits of a class, in the order of kernels/tools/unicode_tables.py.
enum Class : uint32_t {
  kUpper = 1 << 0,
  kSmall = 1 << 1,
  kTitle = 1 << 2,
  kModifier = 1 << 3,
  kOtherLetter = 1 << 4,
  kMark = 1 << 5,
  kDecimal = 1 << 6,
  kLetterNumber = 1 << 7,
  kOtherNumber = 1 << 8,
  kPunctuationMark = 1 << 9,
  kSymbol = 1 << 10,
  kSeparator = 1 << 11,
  kControl = 1 << 12,
  kSpace = 1 << 13,
  kWord = 1 << 14,         // \w of a split pattern
  kNumeric = 1 << 15,      // a digit of the pre-tokenizer Digits
  kPunctuation = 1 << 16,  // of the pre-tokenizer Punctuation
  kJoins = 1 << 17,        // \w of `single_word`, and of the pre-tokenizer Whitespace
  kLetter = kUpper | kSmall | kTitle | kModifier | kOtherLetter,
  kNumber = kDecimal | kLetterNumber | kOtherNumber,
};

class Unicode {
 public:
  static const Unicode& tables();  // made at the first use

  uint32_t class_of(uint32_t code) const { return code < kCodes ? masks_[classes_[code]] : 0; }
  void append_lower(std::string& out, uint32_t code) const;
  uint32_t upper(uint32_t code) const;  // the capital that has this small letter, or itself

  // NFC, NFD, NFKC (compatible, composed) or NFKD.
  std::string normal_form(std::string_view text, bool compatible, bool composed) const;

 private:
  static constexpr uint32_t kCodes = 0x110000;
  struct Pair {
    uint32_t first = 0, second = 0;
  };

  Unicode();
  void decompose(std::vector<uint32_t>& out, uint32_t code, bool compatible) const;
  uint32_t rank(uint32_t code) const;  // canonical combining class
  void order(std::vector<uint32_t>& codes) const;
  void compose(std::vector<uint32_t>& codes) const;
  uint32_t composed(uint32_t first, uint32_t second) const;  // 0: they do not

  std::vector<uint8_t> classes_;  // of every code point
  std::vector<uint32_t> masks_;
  FlatMap<uint32_t> lower_, upper_, composed_, ranks_;
  FlatMap<Pair> canonical_;
  FlatMap<Pair> compatible_;  // where in `spelled_`, and how many
  std::vector<uint32_t> spelled_;
};

}  // namespace edgeqat
