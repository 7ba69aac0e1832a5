#include "pattern_reader.h"

#include <algorithm>
#include <map>

#include "error.h"
#include "unicode.h"
#include "utf8.h"

namespace edgeqat {
namespace {

constexpr std::size_t kMostNodes = 512, kMostRepeats = 1000, kEndless = ~std::size_t(0);
constexpr int kDeepest = 8;
constexpr uint32_t kLongS = 0x17f;  // a capital S's other small letter

}  // namespace

void PatternReader::refuse() const {
  std::string shown(source_.substr(0, 80));
  throw Unsupported(where_ + ": the split pattern '" + shown + "' is not supported at its byte " +
                    std::to_string(at_) + "; encode in Python");
}

bool PatternReader::take(std::string_view word) {
  if (source_.substr(at_, word.size()) != word) return false;
  at_ += word.size();
  return true;
}

uint32_t PatternReader::next() {
  if (done()) refuse();
  return next_code(source_, at_);
}

std::size_t PatternReader::count() {
  std::size_t value = 0, from = at_;
  while (!done() && source_[at_] >= '0' && source_[at_] <= '9' && value < kMostRepeats)
    value = 10 * value + std::size_t(source_[at_++] - '0');
  if (at_ == from || value > kMostRepeats) refuse();
  return value;
}

std::vector<PatternReader::Sequence> PatternReader::read() {
  std::vector<Sequence> found = alternatives(0, false);
  if (!done() || std::any_of(found.begin(), found.end(), may_be_empty)) refuse();
  return found;
}

bool PatternReader::may_be_empty(const Sequence& sequence) {
  return std::all_of(sequence.begin(), sequence.end(), [](const Node& node) {
    if (node.kind == Node::Kind::ahead || node.least == 0) return true;
    return node.kind == Node::Kind::group &&
           std::any_of(node.alternatives.begin(), node.alternatives.end(), may_be_empty);
  });
}

std::vector<PatternReader::Sequence> PatternReader::alternatives(int depth, bool any_case) {
  std::vector<Sequence> all(1);
  while (!done() && source_[at_] != ')') {
    if (take("|")) all.emplace_back();
    else all.back().push_back(node(depth, any_case));
  }
  return all;
}

PatternReader::Node PatternReader::node(int depth, bool any_case) {
  if (++nodes_ > kMostNodes || depth > kDeepest) refuse();
  Node made;
  const bool refused = take("(?!"), wanted = !refused && take("(?=");
  if (refused || wanted) {
    const Node inner = node(depth + 1, any_case);
    if (inner.kind != Node::Kind::characters || inner.least != 1 || inner.most != 1) refuse();
    made.kind = Node::Kind::ahead;
    made.set = inner.set;
    made.wanted = wanted;
    if (!take(")")) refuse();
    return made;
  }
  const bool cased = take("(?i:");
  if (cased || take("(?:")) {
    made.kind = Node::Kind::group;
    made.alternatives = alternatives(depth + 1, any_case || cased);
    if (!take(")")) refuse();
    if (take("?")) made.least = 0;
    if (!done() && std::string_view("*+?{").find(source_[at_]) != source_.npos) refuse();
    return made;
  }
  if (take("[")) {
    if (any_case) refuse();
    bracket(made.set);
  } else if (take("\\")) {
    uint32_t code = 0;
    if (escape(made.set, code)) add_letter(made.set, code, any_case);
  } else {
    if (std::string_view("(){}*+?^$.").find(done() ? '(' : source_[at_]) != source_.npos) refuse();
    add_letter(made.set, next(), any_case);
  }
  made.set.finish();
  repeat(made);
  return made;
}

void PatternReader::repeat(Node& node) {
  if (take("?")) {
    node.least = 0;
  } else if (take("*")) {
    node.least = 0, node.most = kEndless;
  } else if (take("+")) {
    node.most = kEndless;
  } else if (take("{")) {
    node.least = node.most = count();
    if (take(",")) node.most = !done() && source_[at_] == '}' ? kEndless : count();
    if (!take("}") || node.most < node.least || !node.most) refuse();
    if (!done() && std::string_view("*+?{").find(source_[at_]) != source_.npos) refuse();
    return;
  } else {
    return;
  }
  node.possessive = take("+");
  if (!done() && std::string_view("*+?{").find(source_[at_]) != source_.npos) refuse();
}

void PatternReader::add_letter(CharacterSet& set, uint32_t code, bool any_case) {
  set.add(code, code);
  if (!any_case) return;
  const uint32_t small = code | 0x20;
  if (code >= 128 || small < 'a' || small > 'z') return;
  set.add(small, small);
  set.add(small & ~0x20u, small & ~0x20u);
  if (small == 's') set.add(kLongS, kLongS);
}

void PatternReader::bracket(CharacterSet& set) {
  if (take("^")) set.negate();
  while (!take("]")) {
    if (source_.substr(at_, 2) == "&&" || source_.substr(at_, 1) == "[") refuse();
    uint32_t first = 0;
    if (take("\\")) {
      if (!escape(set, first)) continue;
    } else {
      first = next();
    }
    uint32_t last = first;
    const std::string_view ahead = source_.substr(at_, 2);
    if (ahead.size() == 2 && ahead[0] == '-' && ahead[1] != ']') {
      ++at_;
      CharacterSet none;
      if (!take("\\")) last = next();
      else if (!escape(none, last)) refuse();
    }
    if (last < first) refuse();
    set.add(first, last);
  }
}

// Reads what stands behind a backslash: a character into `code`, or a class into `set` and false.
bool PatternReader::escape(CharacterSet& set, uint32_t& code) {
  const uint32_t letter = next();
  switch (letter) {
    case 'r': code = '\r'; return true;
    case 'n': code = '\n'; return true;
    case 't': code = '\t'; return true;
    case 's': set.add_class(kSpace, false); return false;
    case 'S': set.add_class(kSpace, true); return false;
    case 'd': set.add_class(kDecimal, false); return false;
    case 'D': set.add_class(kDecimal, true); return false;
    case 'w': set.add_class(kWord, false); return false;
    case 'W': set.add_class(kWord, true); return false;
    case 'p': property(set, false); return false;
    case 'P': property(set, true); return false;
    default: break;
  }
  const uint32_t small = letter | 0x20;
  if (letter >= 128 || (small >= 'a' && small <= 'z') || (letter >= '0' && letter <= '9')) refuse();
  code = letter;
  return true;
}

void PatternReader::property(CharacterSet& set, bool others) {
  static const std::map<std::string_view, uint32_t> names = {
      {"L", kLetter},       {"N", kNumber},        {"M", kMark},         {"P", kPunctuationMark},
      {"S", kSymbol},       {"Z", kSeparator},     {"C", kControl},      {"Lu", kUpper},
      {"Ll", kSmall},       {"Lt", kTitle},        {"Lm", kModifier},    {"Lo", kOtherLetter},
      {"Nd", kDecimal},     {"Nl", kLetterNumber}, {"No", kOtherNumber},
  };
  const std::size_t close = source_.find('}', at_);
  if (!take("{") || close == source_.npos) refuse();
  const auto found = names.find(source_.substr(at_, close - at_));
  if (found == names.end()) refuse();
  set.add_class(found->second, others);
  at_ = close + 1;
}

SplitPattern::SplitPattern(std::string_view source, const std::string& where)
    : alternatives_(PatternReader(source, where).read()) {}

}  // namespace edgeqat
