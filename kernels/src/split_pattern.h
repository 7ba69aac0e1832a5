// The regular expressions that split text into words, such as GPT-2's
//   's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
// Alternatives of sequences of repeated characters: literals, classes, properties (\p{L}), groups
// (?:...) and (?i:...), lookaheads at one character, ? * + {n,m} and their possessive forms. The
// first alternative that matches counts, as in Oniguruma. Anything else is Unsupported.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace edgeqat {

// A set of characters.
class CharacterSet {
 public:
  void add(uint32_t first, uint32_t last) { ranges_.emplace_back(first, last); }
  void add_class(uint32_t mask, bool others);  // characters with one of the bits, or with none
  void negate() { negated_ = true; }
  void finish();

  bool has(uint32_t code) const { return code < 128 ? ascii_[code] : slow(code); }

 private:
  bool slow(uint32_t code) const;

  std::vector<std::pair<uint32_t, uint32_t>> ranges_;
  std::vector<uint32_t> without_;  // masks of \S, \P{L} ...
  uint32_t with_ = 0;
  bool negated_ = false;
  std::array<bool, 128> ascii_{};
};

class SplitPattern {
 public:
  // `where` names the pattern in errors.
  SplitPattern(std::string_view source, const std::string& where);
  static SplitPattern literal(const std::string& text);

  // The first match from `from` on, never empty; false: there is none.
  bool find(std::string_view text, std::size_t from, std::size_t& begin, std::size_t& end) const;

 private:
  friend class PatternReader;

  struct Node;
  using Sequence = std::vector<Node>;
  struct Node {
    enum class Kind { characters, group, ahead } kind = Kind::characters;
    CharacterSet set;
    std::size_t least = 1, most = 1;
    bool possessive = false, wanted = true;  // wanted: a lookahead that must match
    std::vector<Sequence> alternatives;      // of a group
  };
  struct Rest {  // what follows a group
    const Sequence* sequence;
    std::size_t index;
    const Rest* outer;
  };
  struct Attempt {
    std::string_view text;
    std::size_t steps;
  };

  SplitPattern() = default;
  static bool match(Attempt& attempt, const Sequence& sequence, std::size_t index, std::size_t at,
                    const Rest* rest, std::size_t& end);
  static bool match_repeated(Attempt& attempt, const Sequence& sequence, std::size_t index,
                             std::size_t at, const Rest* rest, std::size_t& end);

  std::vector<Sequence> alternatives_;
  std::string literal_;
};

}  // namespace edgeqat
