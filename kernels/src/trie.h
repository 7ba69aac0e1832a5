// Words by their beginnings: which of them start at a place of a text.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "flat_map.h"

namespace edgeqat {

class Trie {
 public:
  static constexpr int32_t kNone = -1;

  // The value of a word that is there already is replaced. `value` is not negative.
  void insert(std::string_view word, int32_t value) {
    uint32_t node = 0;
    for (const char c : word) {
      const uint32_t* next = edges_.find(key(node, c));
      if (!next) {
        edges_.insert(key(node, c), uint32_t(values_.size()));
        node = uint32_t(values_.size());
        values_.push_back(kNone);
      } else {
        node = *next;
      }
    }
    values_[node] = value;
  }

  // Calls each(length, value) for the words that text starts with at `at`, shortest first.
  template <class Each>
  void prefixes(std::string_view text, std::size_t at, const Each& each) const {
    uint32_t node = 0;
    for (std::size_t i = at; i < text.size(); ++i) {
      const uint32_t* next = edges_.find(key(node, text[i]));
      if (!next) return;
      node = *next;
      if (values_[node] != kNone) each(i + 1 - at, values_[node]);
    }
  }

 private:
  static uint64_t key(uint32_t node, char c) {
    return uint64_t(node) << 8 | static_cast<unsigned char>(c);
  }

  FlatMap<uint32_t> edges_;
  std::vector<int32_t> values_ = {kNone};  // by node
};

}  // namespace edgeqat
