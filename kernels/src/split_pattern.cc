#include "split_pattern.h"

#include "error.h"
#include "unicode.h"
#include "utf8.h"

namespace edgeqat {
namespace {

// Of one search. The patterns of real tokenizers need about as many as the text has characters.
constexpr std::size_t kMostSteps = std::size_t(1) << 28;

}  // namespace

void CharacterSet::add_class(uint32_t mask, bool others) {
  if (others) without_.push_back(mask);
  else with_ |= mask;
}

bool CharacterSet::slow(uint32_t code) const {
  const uint32_t bits = Unicode::tables().class_of(code);
  bool found = bits & with_;
  for (const uint32_t mask : without_) found |= !(bits & mask);
  for (const auto& [first, last] : ranges_) found |= code >= first && code <= last;
  return found != negated_;
}

void CharacterSet::finish() {
  for (uint32_t code = 0; code < 128; ++code) ascii_[code] = slow(code);
}

SplitPattern SplitPattern::literal(const std::string& text) {
  SplitPattern made;
  made.literal_ = text;
  return made;
}

bool SplitPattern::find(std::string_view text, std::size_t from, std::size_t& begin,
                        std::size_t& end) const {
  if (!literal_.empty()) {
    begin = text.find(literal_, from);
    end = begin + literal_.size();
    return begin != text.npos;
  }
  Attempt attempt{text, 0};
  for (begin = from; begin < text.size(); next_code(text, begin))
    for (const Sequence& sequence : alternatives_)
      if (match(attempt, sequence, 0, begin, nullptr, end)) return true;
  return false;
}

bool SplitPattern::match(Attempt& attempt, const Sequence& sequence, std::size_t index,
                         std::size_t at, const Rest* rest, std::size_t& end) {
  if (index == sequence.size()) {
    if (rest) return match(attempt, *rest->sequence, rest->index, at, rest->outer, end);
    end = at;
    return true;
  }
  const Node& node = sequence[index];
  if (node.kind == Node::Kind::characters)
    return match_repeated(attempt, sequence, index, at, rest, end);
  if (node.kind == Node::Kind::ahead) {
    std::size_t behind = at;
    const bool found =
        at < attempt.text.size() && node.set.has(next_code(attempt.text, behind));
    return found == node.wanted && match(attempt, sequence, index + 1, at, rest, end);
  }
  const Rest after{&sequence, index + 1, rest};
  for (const Sequence& inner : node.alternatives)
    if (match(attempt, inner, 0, at, &after, end)) return true;
  return node.least == 0 && match(attempt, sequence, index + 1, at, rest, end);
}

bool SplitPattern::match_repeated(Attempt& attempt, const Sequence& sequence, std::size_t index,
                                  std::size_t at, const Rest* rest, std::size_t& end) {
  const Node& node = sequence[index];
  const std::string_view text = attempt.text;
  std::size_t count = 0;
  while (count < node.most && at < text.size()) {
    std::size_t behind = at;
    if (!node.set.has(next_code(text, behind))) break;
    at = behind;
    ++count;
  }
  attempt.steps += count + 1;
  if (attempt.steps > kMostSteps)
    throw Error("split pattern: it takes too long on this text; encode it in parts");
  for (; count >= node.least; --count) {
    if (match(attempt, sequence, index + 1, at, rest, end)) return true;
    if (node.possessive || count == 0) return false;
    for (--at; (text[at] & 0xc0) == 0x80;) --at;
  }
  return false;
}

}  // namespace edgeqat
