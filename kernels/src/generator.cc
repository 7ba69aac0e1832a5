#include "generator.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "error.h"

namespace edgeqat {
namespace {

constexpr int64_t kMostGuessed = 15;
constexpr double kNewest = 1.0 / 8;    // weight of the newest observation
constexpr double kFirstPrice = 0.15;   // of a guessed token, in steps, before one was timed
constexpr double kLeastGain = 1.03;    // below it a guess is not worth its pass

double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

void Pace::observe(int64_t matched, bool right) {
  right_[matched] += kNewest * (double(right) - right_[matched]);
}

void Pace::time(int64_t guessed, double seconds) {
  if (guessed == 0) step_ += (step_ ? kNewest : 1) * (seconds - step_);
  else guessed_ += kNewest * (std::max(0.0, seconds - step_) / double(guessed) - guessed_);
  if (!guessed_) guessed_ = kFirstPrice * step_;
}

int64_t Pace::best(int64_t matched, int64_t most) const {
  if (!step_) return 0;
  double gain = kLeastGain, tokens = 1, all_right = 1;
  int64_t count = 0;
  for (int64_t n = 1; n <= most; ++n) {
    all_right *= right_[matched];
    tokens += all_right;
    const double here = tokens * step_ / (step_ + double(n) * guessed_);
    if (here > gain) gain = here, count = n;
  }
  return count;
}

Generator::Generator(Engine& engine, Sampler& sampler, const std::vector<int32_t>& before,
                     std::vector<int32_t> ids, int64_t limit, bool lookup)
    : engine_(engine),
      sampler_(sampler),
      unread_(std::move(ids)),
      logits_((lookup ? kMostGuessed + 1 : 1) * engine.model().config.vocabulary),
      left_(limit),
      read_(engine.sequence().position() + int64_t(unread_.size())),
      looks_up_(lookup) {
  if (unread_.empty()) throw Error("ids: there are none; give at least one token");
  if (!looks_up_) return;
  for (const int32_t id : before) lookup_.add(id);
  for (const int32_t id : unread_) lookup_.add(id);
}

int32_t Generator::next() {
  if (ready_.empty() && !ended_) {
    try {
      advance();
    } catch (...) {  // what was drawn is not known any more
      ended_ = true;
      throw;
    }
  }
  if (ready_.empty()) return kEnd;
  const int32_t id = ready_.front();
  ready_.pop_front();
  ++given_;
  return id;
}

void Generator::end() {
  Sequence& sequence = engine_.sequence();
  ended_ = true;
  ready_.clear();
  const int64_t held = read_ + std::max<int64_t>(given_ - 1, 0);  // the last one was not read
  if (sequence.position() > held) sequence.rewind(held);
}

// Reads what is unread and some guessed tokens, and draws a token behind each that was right.
void Generator::advance() {
  Sequence& sequence = engine_.sequence();
  if (left_ <= 0) {
    ended_ = true;
    const int64_t count = int64_t(unread_.size());
    if (!begun_) engine_.forward({{&sequence, unread_.data(), count, 0}}, nullptr);
    return;
  }
  const std::vector<int64_t>& stop = engine_.model().config.stop;
  const int64_t vocabulary = engine_.model().config.vocabulary;
  Lookup::Guess guess;
  int64_t count = 0;
  if (looks_up_) {
    const int64_t room = sequence.context() - sequence.position() - int64_t(unread_.size());
    guess = lookup_.guess(std::max<int64_t>(0, std::min({kMostGuessed, left_ - 1, room})));
    if (begun_) count = pace_.best(guess.matched, int64_t(guess.ids.size()));
  }
  std::vector<int32_t> ids = unread_;
  ids.insert(ids.end(), guess.ids.begin(), guess.ids.begin() + count);
  const double start = seconds();
  engine_.forward({{&sequence, ids.data(), int64_t(ids.size()), count + 1}}, logits_.data());
  if (begun_) pace_.time(count, seconds() - start);
  begun_ = true;
  guessed_ += count;
  int64_t right = 0;
  for (;; ++right) {
    const int32_t id = sampler_.next(logits_.data() + right * vocabulary, vocabulary);
    --left_;
    unread_ = {id};
    ended_ = std::find(stop.begin(), stop.end(), id) != stop.end();
    if (!ended_) ready_.push_back(id);
    if (looks_up_) lookup_.add(id);
    const bool same = right < int64_t(guess.ids.size()) && guess.ids[right] == id;
    if (right < int64_t(guess.ids.size())) pace_.observe(guess.matched, same);
    if (right == count || !same || ended_) break;
  }
  right_ += right;
  sequence.rewind(sequence.position() - (count - right));
}

}  // namespace edgeqat
