// Byte-pair encoding: a word's characters are merged, the pair of the lowest rank first and the
// leftmost of equal ones, until no pair is in the list. O(n log n) by a heap of pairs.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "flat_map.h"
#include "token_model.h"

namespace edgeqat {

class Bpe : public TokenModel {
 public:
  struct Settings {
    bool unknown = false;  // characters without a token become unknown_token; without: nothing
    std::string unknown_token;
    bool fuse_unknown = false;   // several in a row are one
    bool byte_fallback = false;  // or the tokens <0xNN> of their bytes, where all are there
    bool ignore_merges = false;  // a word that is a token is that token
  };

  Bpe(Vocabulary vocabulary, const Settings& settings);

  void add_merge(std::string_view left, std::string_view right);

  void encode(std::string_view word, std::vector<int32_t>& ids) override;

 private:
  struct Merge {
    uint32_t rank = 0;
    int32_t id = 0;
  };
  struct Symbol {
    int32_t id;
    uint32_t previous, next;  // kEnd: none
    bool alive;
  };
  struct Candidate {
    uint32_t rank, at;
    int32_t id;
    bool operator<(const Candidate& other) const {  // of a heap with the best on top
      return rank != other.rank ? rank > other.rank : at > other.at;
    }
  };
  struct Seen {
    std::string word;
    std::vector<int32_t> ids;
  };

  void spell(std::string_view word);
  void merge();
  const Merge* merge_of(int32_t left, int32_t right) const;
  void push(uint32_t left);

  Settings settings_;
  int32_t unknown_;
  FlatMap<Merge> merges_;
  std::vector<Seen> seen_;  // by the hash of the word
  std::vector<Symbol> symbols_;
  std::vector<Candidate> heap_;
};

}  // namespace edgeqat
