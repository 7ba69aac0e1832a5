#include "bpe.h"

#include <algorithm>
#include <functional>

#include "error.h"
#include "utf8.h"

namespace edgeqat {
namespace {

constexpr uint32_t kEnd = ~uint32_t(0);
constexpr std::size_t kSeenWords = 1 << 14, kLongestSeen = 48;
constexpr std::size_t kLongestWord = std::size_t(1) << 30;

}  // namespace

Bpe::Bpe(Vocabulary vocabulary, const Settings& settings)
    : TokenModel(std::move(vocabulary)), settings_(settings), seen_(kSeenWords) {
  unknown_ = settings_.unknown ? vocabulary_.find(settings_.unknown_token) : kNoToken;
}

void Bpe::add_merge(std::string_view left, std::string_view right) {
  const int32_t first = vocabulary_.find(left), second = vocabulary_.find(right);
  const int32_t whole = vocabulary_.find(std::string(left) + std::string(right));
  if (first == kNoToken || second == kNoToken || whole == kNoToken || left.empty() || right.empty())
    throw Error("model.merges: merge " + std::to_string(merges_.size()) +
                " names a token that the vocabulary lacks; copy the folder again");
  merges_.insert(uint64_t(uint32_t(first)) << 32 | uint32_t(second),
                 {uint32_t(merges_.size()), whole});
}

const Bpe::Merge* Bpe::merge_of(int32_t left, int32_t right) const {
  return merges_.find(uint64_t(uint32_t(left)) << 32 | uint32_t(right));
}

void Bpe::encode(std::string_view word, std::vector<int32_t>& ids) {
  if (word.empty()) return;
  if (word.size() > kLongestWord) throw Error("text: a word is too long; encode it in parts");
  Seen* seen = nullptr;
  if (word.size() <= kLongestSeen) {
    seen = &seen_[std::hash<std::string_view>()(word) % kSeenWords];
    if (seen->word == word) {
      ids.insert(ids.end(), seen->ids.begin(), seen->ids.end());
      return;
    }
  }
  const std::size_t start = ids.size();
  const int32_t whole = settings_.ignore_merges ? vocabulary_.find(word) : kNoToken;
  if (whole != kNoToken) {
    ids.push_back(whole);
  } else {
    spell(word);
    merge();
    for (const Symbol& symbol : symbols_)
      if (symbol.alive) ids.push_back(symbol.id);
  }
  if (seen) {
    seen->word = word;
    seen->ids.assign(ids.begin() + start, ids.end());
  }
}

// The tokens of the word's characters. Unknown ones are kept back until a known one comes, also
// behind bytes, as the `tokenizers` library does it.
void Bpe::spell(std::string_view word) {
  symbols_.clear();
  const auto add = [&](int32_t id) { symbols_.push_back({id, kEnd, kEnd, true}); };
  bool waiting = false;
  for (std::size_t at = 0; at < word.size();) {
    const std::size_t from = at;
    next_code(word, at);
    const std::string_view character = word.substr(from, at - from);
    const int32_t id = vocabulary_.find(character);
    if (id != kNoToken) {
      if (waiting) add(unknown_);
      waiting = false;
      add(id);
      continue;
    }
    if (settings_.byte_fallback && spell_bytes(character, add)) continue;
    if (settings_.unknown) {
      if (unknown_ == kNoToken)
        throw Error("model.unk_token: the vocabulary lacks it; copy the folder again");
      if (waiting && !settings_.fuse_unknown) add(unknown_);
      waiting = true;
    }
  }
  if (waiting) add(unknown_);
  for (uint32_t i = 0; i < symbols_.size(); ++i) {
    if (i) symbols_[i].previous = i - 1;
    if (i + 1 < symbols_.size()) symbols_[i].next = i + 1;
  }
}

void Bpe::push(uint32_t left) {
  const Symbol& symbol = symbols_[left];
  if (symbol.next == kEnd) return;
  const Merge* found = merge_of(symbol.id, symbols_[symbol.next].id);
  if (!found) return;
  heap_.push_back({found->rank, left, found->id});
  std::push_heap(heap_.begin(), heap_.end());
}

void Bpe::merge() {
  heap_.clear();
  for (uint32_t i = 0; i < symbols_.size(); ++i) push(i);
  while (!heap_.empty()) {
    std::pop_heap(heap_.begin(), heap_.end());
    const Candidate best = heap_.back();
    heap_.pop_back();
    Symbol& left = symbols_[best.at];
    if (!left.alive || left.next == kEnd) continue;
    Symbol& right = symbols_[left.next];
    const Merge* now = merge_of(left.id, right.id);
    if (!now || now->id != best.id) continue;  // one of the pair was merged since
    left.id = best.id;
    left.next = right.next;
    right.alive = false;
    if (right.next != kEnd) symbols_[right.next].previous = best.at;
    if (left.previous != kEnd) push(left.previous);
    push(best.at);
  }
}

}  // namespace edgeqat
