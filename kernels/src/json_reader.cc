#include "json_reader.h"

#include <charconv>
#include <cmath>

#include "error.h"
#include "utf8.h"

namespace edgeqat {
namespace {

constexpr int kDeepest = 32;

}  // namespace

void JsonReader::fail(const char* problem) const {
  throw Error(what_ + ": no valid JSON at byte " + std::to_string(at_) + " (" + problem +
              "); copy the folder again");
}

void JsonReader::blanks() {
  while (at_ < text_.size() && std::string_view(" \t\r\n").find(text_[at_]) != text_.npos) ++at_;
}

void JsonReader::expect(char wanted) {
  if (current() != wanted) fail("another character was expected");
  ++at_;
}

bool JsonReader::take(std::string_view word) {
  if (text_.substr(at_, word.size()) != word) return false;
  at_ += word.size();
  return true;
}

void JsonReader::open(char bracket) {
  blanks();
  expect(bracket);
  if (++depth_ > kDeepest) fail("nested too deeply");
}

bool JsonReader::closes(char bracket) {
  blanks();
  if (current() != bracket) return false;
  ++at_;
  return true;
}

bool JsonReader::continues(char bracket) {
  if (closes(bracket)) return false;
  expect(',');
  return true;
}

void JsonReader::finish() {
  blanks();
  if (at_ != text_.size()) fail("text after the end");
}

Json JsonReader::value(const std::string& name) {
  blanks();
  Json value;
  value.name_ = name;
  const char first = current();
  if (first == '{') {
    value.kind_ = Json::Kind::object;
    members([&](const std::string& key) {
      if (!value.object_.emplace(key, this->value(key)).second) fail("a key twice");
    });
  } else if (first == '[') {
    value.kind_ = Json::Kind::array;
    elements([&] { value.array_.push_back(this->value(name)); });
  } else if (first == '"') {
    value.kind_ = Json::Kind::string;
    value.text_ = string();
  } else if (first == '-' || (first >= '0' && first <= '9')) {
    value.kind_ = Json::Kind::number;
    value.text_ = std::string(number());
    const char* end = value.text_.data() + value.text_.size();
    const auto result = std::from_chars(value.text_.data(), end, value.number_);
    if (result.ec != std::errc() || !std::isfinite(value.number_)) fail("a number out of range");
  } else if (take("true") || take("false")) {
    value.kind_ = Json::Kind::boolean;
    value.boolean_ = text_[at_ - 2] == 'u';
  } else if (!take("null")) {
    fail("a value was expected");
  }
  return value;
}

void JsonReader::skip() {
  const char first = peek();
  if (first == '{') members([&](const std::string&) { skip(); });
  else if (first == '[') elements([&] { skip(); });
  else if (first == '"') string();
  else if (first == '-' || (first >= '0' && first <= '9')) number();
  else if (!take("true") && !take("false") && !take("null")) fail("a value was expected");
}

std::string_view JsonReader::number() {
  const std::size_t start = at_;
  auto digits = [&] {
    const std::size_t from = at_;
    while (current() >= '0' && current() <= '9') ++at_;
    if (at_ == from) fail("a digit was expected");
  };
  if (current() == '-') ++at_;
  if (current() == '0') ++at_;
  else digits();
  if (current() == '.') ++at_, digits();
  if (current() == 'e' || current() == 'E') {
    ++at_;
    if (current() == '+' || current() == '-') ++at_;
    digits();
  }
  return text_.substr(start, at_ - start);
}

uint32_t JsonReader::hex4() {
  uint32_t code = 0;
  if (text_.size() - at_ < 4) fail("an unfinished escape");
  const char* start = text_.data() + at_;
  const auto result = std::from_chars(start, start + 4, code, 16);
  if (result.ec != std::errc() || result.ptr != start + 4) fail("a wrong escape");
  at_ += 4;
  return code;
}

void JsonReader::escape(std::string& out) {
  const char kind = current();
  ++at_;
  const std::string_view plain = "\"\\/bfnrt", meaning = "\"\\/\b\f\n\r\t";
  if (kind != '\0' && plain.find(kind) != plain.npos) {
    out += meaning[plain.find(kind)];
  } else if (kind == 'u') {
    uint32_t code = hex4();
    if (code >= 0xd800 && code < 0xe000) {
      const uint32_t low = code < 0xdc00 && take("\\u") ? hex4() : 0;
      if (low < 0xdc00 || low > 0xdfff) fail("a wrong surrogate");
      code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
    }
    append_code(out, code);
  } else {
    fail("a wrong escape");
  }
}

std::string JsonReader::string() {
  blanks();
  expect('"');
  std::string out;
  for (;;) {
    if (at_ >= text_.size()) fail("an unfinished string");
    const char c = text_[at_++];
    if (c == '"') return out;
    if (static_cast<unsigned char>(c) < 0x20) fail("a control character");
    if (c == '\\') escape(out);
    else out += c;
  }
}

}  // namespace edgeqat
