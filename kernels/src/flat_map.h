// A hash table of 64-bit keys in one block of memory: merges, edges of tries, composed characters.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace edgeqat {

template <class Value>
class FlatMap {
 public:
  // A key that is there keeps its place and gets the new value. ~0 is no key.
  void insert(uint64_t key, const Value& value) {
    if (4 * (count_ + 1) > 3 * slots_.size()) grow();
    Slot& slot = slots_[place(key)];
    count_ += slot.key == kNone;
    slot = {key, value};
  }

  const Value* find(uint64_t key) const {
    if (slots_.empty()) return nullptr;
    const Slot& slot = slots_[place(key)];
    return slot.key == kNone ? nullptr : &slot.value;
  }

  std::size_t size() const { return count_; }

 private:
  static constexpr uint64_t kNone = ~uint64_t(0);
  struct Slot {
    uint64_t key = kNone;
    Value value{};
  };

  std::size_t place(uint64_t key) const {
    const std::size_t mask = slots_.size() - 1;
    uint64_t hash = (key ^ key >> 32) * 0x9e3779b97f4a7c15;
    std::size_t at = (hash ^ hash >> 29) & mask;
    while (slots_[at].key != kNone && slots_[at].key != key) at = (at + 1) & mask;
    return at;
  }

  void grow() {
    std::vector<Slot> old(slots_.empty() ? 16 : 2 * slots_.size());
    old.swap(slots_);
    for (const Slot& slot : old)
      if (slot.key != kNone) slots_[place(slot.key)] = slot;
  }

  std::vector<Slot> slots_;
  std::size_t count_ = 0;
};

}  // namespace edgeqat
