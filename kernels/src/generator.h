// Tokens that continue a text, one by one. With lookup some of them are guessed and checked in one
// pass: the tokens are those of single steps, in less time where guesses are right.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <vector>

#include "engine.h"
#include "lookup.h"
#include "sampler.h"

namespace edgeqat {

// How many guessed tokens to check at once, by how often guesses were right and what they cost.
class Pace {
 public:
  Pace() { right_.fill(0.5); }
  // A guess behind so many matched tokens was right or wrong, checked by a pass or not.
  void observe(int64_t matched, bool right);
  // A pass over one token and so many guessed ones took so long.
  void time(int64_t guessed, double seconds);
  int64_t best(int64_t matched, int64_t most) const;

 private:
  std::array<double, Lookup::kLongestMatch + 1> right_;  // shares, by how many tokens matched
  double step_ = 0, guessed_ = 0;  // seconds of a single step, and more for each guessed token
};

class Generator {
 public:
  static constexpr int32_t kEnd = -1;

  // Continues the engine's own sequence by `ids` and at most `limit` tokens behind them. `before`:
  // what the sequence holds, for lookup alone. Engine and sampler outlive it.
  Generator(Engine& engine, Sampler& sampler, const std::vector<int32_t>& before,
            std::vector<int32_t> ids, int64_t limit, bool lookup);

  // The next token, or kEnd behind the limit or before a token that ends a text.
  int32_t next();
  // Forgets what the sequence holds beyond the tokens that were given: right guesses. It is over.
  void end();

  int64_t guessed() const { return guessed_; }  // tokens that were checked
  int64_t right() const { return right_; }

 private:
  void advance();

  Engine& engine_;
  Sampler& sampler_;
  Lookup lookup_;
  Pace pace_;
  std::vector<int32_t> unread_;  // tokens that the sequence has yet to read
  std::deque<int32_t> ready_;
  std::vector<float> logits_;
  int64_t left_;               // tokens that may be drawn
  int64_t read_, given_ = 0;   // where the text of `ids` ends, and tokens behind it
  bool looks_up_, begun_ = false, ended_ = false;
  int64_t guessed_ = 0, right_ = 0;
};

}  // namespace edgeqat
