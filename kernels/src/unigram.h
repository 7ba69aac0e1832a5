// The likeliest way to write a word with tokens of known log-probability (Viterbi). Characters that
// no token holds cost 10 more than the worst token; neighbours of them are one unknown token, or
// the tokens <0xNN> of their bytes.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "token_model.h"
#include "trie.h"

namespace edgeqat {

class Unigram : public TokenModel {
 public:
  // scores: by id. unknown: an id, or kNoToken.
  Unigram(Vocabulary vocabulary, std::vector<double> scores, int32_t unknown, bool byte_fallback);

  void encode(std::string_view word, std::vector<int32_t>& ids) override;

 private:
  struct Node {  // the best way to write the text up to here
    double score = 0;
    std::size_t start = ~std::size_t(0);  // of its last token
    int32_t id = 0;
  };

  std::vector<double> scores_;
  int32_t unknown_;
  bool byte_fallback_;
  double unknown_score_;
  Trie trie_;
  std::vector<Node> nodes_;
};

}  // namespace edgeqat
