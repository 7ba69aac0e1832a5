#include "json.h"

#include <charconv>
#include <cmath>

#include "error.h"

namespace edgeqat {
namespace {

constexpr int kDeepest = 32;

void append_utf8(std::string& out, uint32_t code) {
  if (code < 0x80) {
    out += char(code);
  } else if (code < 0x800) {
    out += char(0xc0 | code >> 6);
    out += char(0x80 | (code & 63));
  } else if (code < 0x10000) {
    out += char(0xe0 | code >> 12);
    out += char(0x80 | (code >> 6 & 63));
    out += char(0x80 | (code & 63));
  } else {
    out += char(0xf0 | code >> 18);
    out += char(0x80 | (code >> 12 & 63));
    out += char(0x80 | (code >> 6 & 63));
    out += char(0x80 | (code & 63));
  }
}

}  // namespace

class JsonReader {
 public:
  JsonReader(std::string_view text, const std::string& what) : text_(text), what_(what) {}

  Json document() {
    Json value = read(0, what_);
    blanks();
    if (at_ != text_.size()) fail("text after the end");
    return value;
  }

 private:
  [[noreturn]] void fail(const char* problem) const {
    throw Error(what_ + ": no valid JSON at byte " + std::to_string(at_) + " (" + problem +
                "); copy the folder again");
  }

  void blanks() {
    while (at_ < text_.size() && std::string_view(" \t\r\n").find(text_[at_]) != text_.npos) ++at_;
  }

  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }

  void expect(char wanted) {
    if (peek() != wanted) fail("another character was expected");
    ++at_;
  }

  bool take(std::string_view word) {
    if (text_.substr(at_, word.size()) != word) return false;
    at_ += word.size();
    return true;
  }

  Json read(int depth, const std::string& name) {
    if (depth > kDeepest) fail("nested too deeply");
    blanks();
    Json value;
    value.name_ = name;
    const char first = peek();
    if (first == '{') {
      object(value, depth);
    } else if (first == '[') {
      array(value, depth);
    } else if (first == '"') {
      value.kind_ = Json::Kind::string;
      value.text_ = string();
    } else if (first == '-' || (first >= '0' && first <= '9')) {
      number(value);
    } else if (take("true") || take("false")) {
      value.kind_ = Json::Kind::boolean;
      value.boolean_ = text_[at_ - 2] == 'u';
    } else if (!take("null")) {
      fail("a value was expected");
    }
    return value;
  }

  void object(Json& value, int depth) {
    value.kind_ = Json::Kind::object;
    expect('{');
    blanks();
    if (peek() == '}') return expect('}');
    for (;;) {
      blanks();
      std::string key = string();
      blanks();
      expect(':');
      Json member = read(depth + 1, key);
      if (!value.object_.emplace(std::move(key), std::move(member)).second) fail("a key twice");
      blanks();
      if (peek() == '}') return expect('}');
      expect(',');
    }
  }

  void array(Json& value, int depth) {
    value.kind_ = Json::Kind::array;
    expect('[');
    blanks();
    if (peek() == ']') return expect(']');
    for (;;) {
      value.array_.push_back(read(depth + 1, value.name_));
      blanks();
      if (peek() == ']') return expect(']');
      expect(',');
    }
  }

  void number(Json& value) {
    const std::size_t start = at_;
    auto digits = [&] {
      const std::size_t from = at_;
      while (peek() >= '0' && peek() <= '9') ++at_;
      if (at_ == from) fail("a digit was expected");
    };
    if (peek() == '-') ++at_;
    if (peek() == '0') ++at_;
    else digits();
    if (peek() == '.') ++at_, digits();
    if (peek() == 'e' || peek() == 'E') {
      ++at_;
      if (peek() == '+' || peek() == '-') ++at_;
      digits();
    }
    value.kind_ = Json::Kind::number;
    value.text_ = std::string(text_.substr(start, at_ - start));
    const char* end = value.text_.data() + value.text_.size();
    const auto result = std::from_chars(value.text_.data(), end, value.number_);
    if (result.ec != std::errc() || !std::isfinite(value.number_)) fail("a number out of range");
  }

  uint32_t hex4() {
    uint32_t code = 0;
    if (text_.size() - at_ < 4) fail("an unfinished escape");
    const char* start = text_.data() + at_;
    const auto result = std::from_chars(start, start + 4, code, 16);
    if (result.ec != std::errc() || result.ptr != start + 4) fail("a wrong escape");
    at_ += 4;
    return code;
  }

  void escape(std::string& out) {
    const char kind = peek();
    ++at_;
    const std::string_view plain = "\"\\/bfnrt", meaning = "\"\\/\b\f\n\r\t";
    if (kind != '\0' && plain.find(kind) != plain.npos) {
      out += meaning[plain.find(kind)];
    } else if (kind == 'u') {
      uint32_t code = hex4();
      if (code >= 0xd800 && code < 0xdc00 && take("\\u")) {
        const uint32_t low = hex4();
        if (low < 0xdc00 || low > 0xdfff) fail("a wrong surrogate");
        code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
      }
      append_utf8(out, code);
    } else {
      fail("a wrong escape");
    }
  }

  std::string string() {
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

  std::string_view text_;
  std::string what_;
  std::size_t at_ = 0;
};

Json Json::parse(std::string_view text, const std::string& what) {
  return JsonReader(text, what).document();
}

void Json::fail(const std::string& expected) const {
  throw Error(name_ + ": " + expected + " was expected; copy the folder again");
}

bool Json::boolean() const {
  if (kind_ != Kind::boolean) fail("true or false");
  return boolean_;
}

double Json::number() const {
  if (kind_ != Kind::number) fail("a number");
  return number_;
}

int64_t Json::integer(int64_t least, int64_t most) const {
  int64_t value = 0;
  const char* end = text_.data() + text_.size();
  bool whole = kind_ == Kind::number;
  if (whole) {
    const auto read = std::from_chars(text_.data(), end, value);
    whole = read.ec == std::errc() && read.ptr == end && value >= least && value <= most;
  }
  if (!whole) fail("a whole number from " + std::to_string(least) + " to " + std::to_string(most));
  return value;
}

const std::string& Json::string() const {
  if (kind_ != Kind::string) fail("a string");
  return text_;
}

const std::vector<Json>& Json::array() const {
  if (kind_ != Kind::array) fail("a list");
  return array_;
}

const std::map<std::string, Json>& Json::object() const {
  if (kind_ != Kind::object) fail("an object");
  return object_;
}

const Json& Json::at(const std::string& key) const {
  const auto found = object().find(key);
  if (found == object_.end())
    throw Error(name_ + ": '" + key + "' is missing; copy the folder again");
  return found->second;
}

const Json* Json::find(const std::string& key) const {
  const auto found = object().find(key);
  return found == object_.end() || found->second.is_null() ? nullptr : &found->second;
}

}  // namespace edgeqat
