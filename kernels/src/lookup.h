// Prompt lookup: what followed the last tokens when they came before, as a guess at what follows.
#pragma once

#include <cstdint>
#include <vector>

#include "flat_map.h"

namespace edgeqat {

class Lookup {
 public:
  void add(int32_t id);

  struct Guess {
    std::vector<int32_t> ids;  // empty: the last tokens did not come before
    int64_t matched = 0;       // of the tokens before it, at most kLongestMatch
  };
  static constexpr int64_t kLongestMatch = 8;
  // At most `most` ids, by the newest place where the last three tokens came, or the last two.
  Guess guess(int64_t most) const;

 private:
  // Where the text went on after its `count` tokens before `end` came; 0: nowhere before.
  int64_t after(const FlatMap<int64_t>& places, int64_t count) const;

  std::vector<int32_t> ids_;
  FlatMap<int64_t> pairs_, triples_;  // of tokens, to the place behind their newest one
};

}  // namespace edgeqat
