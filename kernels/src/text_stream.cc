#include "text_stream.h"

namespace edgeqat {
namespace {

constexpr std::string_view kBroken = "\xef\xbf\xbd";  // U+FFFD: perhaps part of a character

// Bytes of a text in front of the broken characters at its end.
std::size_t sound_bytes(std::string_view text) {
  std::size_t size = text.size();
  while (size >= kBroken.size() && text.substr(size - kBroken.size(), kBroken.size()) == kBroken)
    size -= kBroken.size();
  return size;
}

}  // namespace

std::string TextStream::text(std::size_t count) const {
  return tokenizer_.decode(ids_.data(), count, special_);
}

// The text of all ids from what is out to `size`. Bytes that turn out to be broken may change what
// stands before them: then it goes on at the next whole character.
std::string TextStream::added(const std::string& all, std::size_t size) const {
  std::size_t from = shown_;
  while (from < size && (all[from] & 0xc0) == 0x80) ++from;
  return from < size ? all.substr(from, size - from) : "";
}

// Tokens are decoded with those before them, on which their text may depend: a first space goes.
std::string TextStream::next(int32_t id) {
  ids_.push_back(id);
  const std::string all = text(ids_.size());
  const std::size_t sound = sound_bytes(all);
  if (sound <= shown_) return "";
  const std::string more = added(all, sound);
  shown_ = sound;
  if (sound == all.size()) {
    ids_.erase(ids_.begin(), ids_.begin() + std::ptrdiff_t(known_));
    known_ = ids_.size();
    shown_ = text(known_).size();
  }
  return more;
}

std::string TextStream::end() {
  const std::string all = text(ids_.size());
  const std::string more = added(all, all.size());
  ids_.clear();
  known_ = shown_ = 0;
  return more;
}

}  // namespace edgeqat
