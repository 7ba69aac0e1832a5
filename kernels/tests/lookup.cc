// Guesses of prompt lookup, and when they pay.

#include "expect.h"
#include "generator.h"

namespace edgeqat {
namespace {

using Ids = std::vector<int32_t>;

Lookup::Guess guess_of(const Ids& text, int64_t most) {
  Lookup lookup;
  for (const int32_t id : text) lookup.add(id);
  return lookup.guess(most);
}

}  // namespace

void check_lookup(Expect& expect) {
  expect.that(guess_of({}, 4).ids.empty() && guess_of({1, 1}, 4).ids.empty() &&
                  guess_of({1, 2, 3, 4, 2}, 4).ids.empty(),
              "one token alone is guessed from");
  Lookup::Guess guess = guess_of({1, 2, 3, 4, 5, 9, 2, 3}, 3);
  expect.that(guess.ids == Ids({4, 5, 9}) && guess.matched == 2, "what followed two tokens");
  guess = guess_of({1, 2, 3, 4, 7, 2, 3, 5, 8, 1, 2, 3}, 2);
  expect.that(guess.ids == Ids({4, 7}) && guess.matched == 3, "three tokens go before two");
  guess = guess_of({2, 3, 4, 7, 2, 3, 5, 8, 2, 3}, 1);
  expect.that(guess.ids == Ids({5}), "the newest place goes before older ones");
  guess = guess_of({6, 1, 2, 3, 1, 2, 3}, 7);
  expect.that(guess.ids == Ids({1, 2, 3, 1, 2, 3, 1}) && guess.matched == 3,
              "what repeats goes on repeating");
  Ids same(40, 5);
  expect.that(guess_of(same, 3).ids == Ids({5, 5, 5}) &&
                  guess_of(same, 3).matched == Lookup::kLongestMatch,
              "one token again and again");
  const int32_t large = (1 << 30) + 7;
  expect.that(guess_of({large, 2, 6, large, 2}, 1).ids == Ids({6}), "ids of any size");

  Pace pace;
  expect.that(pace.best(3, 8) == 0, "nothing is guessed before a step was timed");
  pace.time(0, 1.0);
  expect.that(pace.best(3, 8) > 0, "a guess of unknown worth is tried");
  for (int i = 0; i < 40; ++i) pace.observe(3, false);
  expect.that(pace.best(3, 8) == 0 && pace.best(5, 8) > 0, "wrong guesses end, of their kind");
  for (int i = 0; i < 40; ++i) pace.observe(3, true);
  expect.that(pace.best(3, 8) == 8 && pace.best(3, 2) == 2, "right guesses come back and grow");
  for (int i = 0; i < 60; ++i) pace.time(4, 1.0 + 4 * 1.5);
  expect.that(pace.best(3, 8) == 0, "guesses that cost more than steps end");
  for (int i = 0; i < 60; ++i) pace.time(4, 1.0 + 4 * 0.01);
  expect.that(pace.best(3, 8) == 8, "cheap guesses come back");
}

}  // namespace edgeqat
