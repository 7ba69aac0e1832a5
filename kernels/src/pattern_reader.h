// The reader of a split pattern's source.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "split_pattern.h"

namespace edgeqat {

class PatternReader {
 public:
  PatternReader(std::string_view source, const std::string& where)
      : source_(source), where_(where) {}

  std::vector<SplitPattern::Sequence> read();

 private:
  using Node = SplitPattern::Node;
  using Sequence = SplitPattern::Sequence;

  [[noreturn]] void refuse() const;
  bool done() const { return at_ >= source_.size(); }
  bool take(std::string_view word);
  uint32_t next();
  std::size_t count();

  std::vector<Sequence> alternatives(int depth, bool any_case);
  Node node(int depth, bool any_case);
  void repeat(Node& node);
  void bracket(CharacterSet& set);
  bool escape(CharacterSet& set, uint32_t& code);
  void property(CharacterSet& set, bool others);
  static void add_letter(CharacterSet& set, uint32_t code, bool any_case);
  static bool may_be_empty(const Sequence& sequence);

  std::string_view source_;
  std::string where_;
  std::size_t at_ = 0, nodes_ = 0;
};

}  // namespace edgeqat
