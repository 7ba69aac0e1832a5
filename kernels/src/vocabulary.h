// Tokens and their ids, in one block of text.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace edgeqat {

constexpr int32_t kNoToken = -1;
constexpr int64_t kMostTokens = int64_t(1) << 24;

class Vocabulary {
 public:
  // Of two equal tokens the later id counts; an id that is given twice is an Error.
  void add(std::string_view token, int32_t id);

  int32_t find(std::string_view token) const;  // or kNoToken
  bool has(int32_t id) const { return id >= 0 && id < int32_t(spans_.size()) && spans_[id].known; }
  std::string_view token(int32_t id) const;  // of an id it has
  int64_t size() const { return ids_; }

 private:
  struct Span {
    uint32_t begin = 0, size = 0;
    bool known = false;
  };

  std::size_t place(std::string_view token) const;
  void grow();

  std::string text_;
  std::vector<Span> spans_;     // by id
  std::vector<int32_t> table_;  // ids by the hash of their token
  int64_t ids_ = 0, words_ = 0;  // fewer words where some are equal
};

}  // namespace edgeqat
