#include "added_tokens.h"

#include <algorithm>
#include <set>

#include "error.h"
#include "unicode.h"
#include "utf8.h"

namespace edgeqat {
namespace {

constexpr std::size_t kMostAdded = 1 << 20;

// The class of the character that ends at `end`.
uint32_t class_before(std::string_view text, std::size_t end, std::size_t& begin) {
  begin = end - 1;
  while (begin > 0 && (text[begin] & 0xc0) == 0x80) --begin;
  std::size_t at = begin;
  return Unicode::tables().class_of(next_code(text, at));
}

bool flag(const Json& json, const char* key) {
  const Json* found = json.find(key);
  return found && found->boolean();
}

}  // namespace

AddedTokens::AddedTokens(const Json& list, const Vocabulary& vocabulary,
                         const Normalizer& normalizer) {
  if (list.array().size() > kMostAdded) throw Error("added_tokens: there are too many");
  int64_t next = vocabulary.size();
  std::set<std::string> special;
  for (const Json& json : list.array()) {
    const std::string& text = json.at("content").string();
    if (text.empty()) continue;
    const int32_t known = vocabulary.find(text);
    const int32_t id = int32_t(json.at("id").integer(0, kMostTokens - 1));
    if (id != (known == kNoToken ? next : known) || with(id))
      throw Unsupported("added_tokens: id " + std::to_string(id) + " of '" + text.substr(0, 80) +
                        "' does not follow from the vocabulary; encode in Python");
    next += known == kNoToken;
    by_id_[id] = tokens_.size();
    by_text_[text] = id;
    const bool normalized = flag(json, "normalized");
    bool first = true;
    const std::string pattern = normalized ? normalizer.apply(text, first) : text;
    if (pattern.empty())
      throw Unsupported("added_tokens: nothing of '" + text.substr(0, 80) +
                        "' is left when it is normalized; encode in Python");
    (normalized ? behind_ : before_).insert(pattern, int32_t(tokens_.size()));
    if (flag(json, "special")) special.insert(text);
    tokens_.push_back({id, pattern, false, flag(json, "single_word"), flag(json, "lstrip"),
                       flag(json, "rstrip")});
  }
  for (Token& token : tokens_) token.special = special.count(token.shown) > 0;
}

const AddedTokens::Token* AddedTokens::with(int32_t id) const {
  const auto found = by_id_.find(id);
  return found == by_id_.end() ? nullptr : &tokens_[found->second];
}

const std::string* AddedTokens::shown(int32_t id) const {
  const Token* found = with(id);
  return found ? &found->shown : nullptr;
}

bool AddedTokens::special(int32_t id) const {
  const Token* found = with(id);
  return found && found->special;
}

int32_t AddedTokens::find(const std::string& text) const {
  const auto found = by_text_.find(text);
  return found == by_text_.end() ? kNoToken : found->second;
}

std::vector<AddedTokens::Segment> AddedTokens::cut(std::string_view text, bool normalized) const {
  const Trie& trie = normalized ? behind_ : before_;
  const Unicode& unicode = Unicode::tables();
  std::vector<Segment> found;
  std::size_t done = 0;  // up to here the text is in segments
  for (std::size_t at = 0; at < text.size();) {
    std::size_t length = 0;
    int32_t index = kNoToken;
    trie.prefixes(text, at, [&](std::size_t size, int32_t value) { length = size, index = value; });
    if (index == kNoToken) {
      ++at;
      continue;
    }
    const Token& token = tokens_[index];
    std::size_t begin = at, end = at + length, other = 0;
    at = end;
    if (token.single_word) {
      const bool joined_left = begin > 0 && class_before(text, begin, other) & kJoins;
      other = end;
      if (joined_left || (end < text.size() && unicode.class_of(next_code(text, other)) & kJoins))
        continue;
    }
    if (token.left) {
      while (begin > 0 && class_before(text, begin, other) & kSpace) begin = other;
      begin = std::max(begin, done);
    }
    if (token.right)
      for (other = end; end < text.size(); end = other)
        if (!(unicode.class_of(next_code(text, other)) & kSpace)) break;
    if (begin > done) found.push_back({kNoToken, done, begin});
    found.push_back({token.id, begin, end});
    done = end;
  }
  if (done < text.size()) found.push_back({kNoToken, done, text.size()});
  return found;
}

}  // namespace edgeqat
