#include "lookup.h"

#include <algorithm>

namespace edgeqat {
namespace {

// Of the `count` ids before `end`; ids are below 2^21 in practice, and places are compared anyway.
uint64_t key_of(const int32_t* end, int64_t count) {
  uint64_t key = 0;
  for (const int32_t* id = end - count; id < end; ++id) key = key << 21 ^ uint64_t(*id);
  return key & ~uint64_t(0) >> 1;
}

}  // namespace

void Lookup::add(int32_t id) {
  const int64_t place = int64_t(ids_.size());
  const int32_t* end = ids_.data() + place;
  if (place >= 2) pairs_.insert(key_of(end, 2), place);
  if (place >= 3) triples_.insert(key_of(end, 3), place);
  ids_.push_back(id);
}

int64_t Lookup::after(const FlatMap<int64_t>& places, int64_t count) const {
  const int64_t size = int64_t(ids_.size());
  if (size < count) return 0;
  const int32_t* end = ids_.data() + size;
  const int64_t* place = places.find(key_of(end, count));
  return place && std::equal(end - count, end, ids_.data() + *place - count) ? *place : 0;
}

Lookup::Guess Lookup::guess(int64_t most) const {
  Guess guess;
  const int64_t size = int64_t(ids_.size());
  int64_t place = after(triples_, 3);
  if (!place) place = after(pairs_, 2);
  if (!place) return guess;
  while (guess.matched < std::min(place, kLongestMatch) &&
         ids_[place - 1 - guess.matched] == ids_[size - 1 - guess.matched])
    ++guess.matched;
  for (int64_t i = place; i < place + most; ++i)  // what repeats goes on repeating
    guess.ids.push_back(i < size ? ids_[i] : guess.ids[i - size]);
  return guess;
}

}  // namespace edgeqat
