#include "unigram.h"

#include <algorithm>
#include <limits>

#include "error.h"
#include "utf8.h"

namespace edgeqat {
namespace {

constexpr double kUnknownPenalty = 10;
constexpr std::size_t kNone = ~std::size_t(0);
constexpr std::size_t kLongestWord = std::size_t(1) << 26;

}  // namespace

Unigram::Unigram(Vocabulary vocabulary, std::vector<double> scores, int32_t unknown,
                 bool byte_fallback)
    : TokenModel(std::move(vocabulary)),
      scores_(std::move(scores)),
      unknown_(unknown),
      byte_fallback_(byte_fallback),
      unknown_score_(std::numeric_limits<double>::infinity()) {
  for (int32_t id = 0; id < int32_t(scores_.size()); ++id) {
    trie_.insert(vocabulary_.token(id), id);
    unknown_score_ = std::min(unknown_score_, scores_[id]);
  }
  unknown_score_ -= kUnknownPenalty;
}

void Unigram::encode(std::string_view word, std::vector<int32_t>& ids) {
  if (word.size() > kLongestWord) throw Error("text: a word is too long; encode it in parts");
  nodes_.assign(word.size() + 1, {});
  const auto offer = [&](std::size_t start, std::size_t end, double score, int32_t id) {
    Node& node = nodes_[end];
    if (node.start != kNone && !(score > node.score)) return;
    node = {score, start, id};
  };
  for (std::size_t at = 0, next = 0; at < word.size(); at = next) {
    next_code(word, next);
    const double so_far = nodes_[at].score;
    bool whole = false;  // a token holds just this character
    trie_.prefixes(word, at, [&](std::size_t length, int32_t id) {
      offer(at, at + length, scores_[id] + so_far, id);
      whole |= length == next - at;
    });
    if (whole) continue;
    if (unknown_ == kNoToken)
      throw Error("model.unk_id: there is none, but the text needs it; copy the folder again");
    offer(at, next, unknown_score_ + so_far, unknown_);
  }
  std::vector<std::pair<std::size_t, std::size_t>> found;  // pieces, the last one first
  bool fusing = false;
  for (std::size_t end = word.size(); end > 0; end = nodes_[end].start) {
    const bool unknown = unknown_ != kNoToken && nodes_[end].id == unknown_;
    if (unknown && fusing) found.back().first = nodes_[end].start;
    else found.emplace_back(nodes_[end].start, end);
    fusing = unknown;
  }
  for (auto piece = found.rbegin(); piece != found.rend(); ++piece) {
    const std::string_view text = word.substr(piece->first, piece->second - piece->first);
    const int32_t id = vocabulary_.find(text);
    const auto add = [&](int32_t byte) { ids.push_back(byte); };
    if (id != kNoToken) ids.push_back(id);
    else if (!byte_fallback_ || !spell_bytes(text, add)) ids.push_back(unknown_);
  }
}

}  // namespace edgeqat
