#include "vocabulary.h"

#include <functional>

#include "error.h"

namespace edgeqat {
namespace {

constexpr std::size_t kMostText = std::size_t(1) << 31;

}  // namespace

std::string_view Vocabulary::token(int32_t id) const {
  return std::string_view(text_).substr(spans_[id].begin, spans_[id].size);
}

std::size_t Vocabulary::place(std::string_view word) const {
  const std::size_t mask = table_.size() - 1;
  std::size_t at = std::hash<std::string_view>()(word) & mask;
  while (table_[at] != kNoToken && token(table_[at]) != word) at = (at + 1) & mask;
  return at;
}

int32_t Vocabulary::find(std::string_view word) const {
  return table_.empty() ? kNoToken : table_[place(word)];
}

void Vocabulary::grow() {
  std::vector<int32_t> old(table_.empty() ? 64 : 2 * table_.size(), kNoToken);
  old.swap(table_);
  for (const int32_t id : old)
    if (id != kNoToken) table_[place(token(id))] = id;
}

void Vocabulary::add(std::string_view word, int32_t id) {
  if (id < 0 || id >= kMostTokens || text_.size() + word.size() > kMostText)
    throw Error("tokenizer.json: too many tokens, or an id out of range; copy the folder again");
  if (has(id)) throw Error("tokenizer.json: id " + std::to_string(id) + " is given twice");
  if (id >= int32_t(spans_.size())) spans_.resize(std::size_t(id) + 1);
  spans_[id] = {uint32_t(text_.size()), uint32_t(word.size()), true};
  text_ += word;
  if (2 * (words_ + 1) > int64_t(table_.size())) grow();
  const std::size_t at = place(word);
  words_ += table_[at] == kNoToken;
  ++ids_;
  table_[at] = id;
}

}  // namespace edgeqat
