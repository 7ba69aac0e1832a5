#include "jinja_lexer.h"

#include <array>
#include <charconv>

#include "jinja_value.h"
#include "unicode.h"
#include "utf8.h"

namespace edgeqat {
namespace {

using Kind = JinjaToken::Kind;

constexpr std::size_t kMostTokens = 1 << 17;

bool is_space(uint32_t code) {  // Python's str.isspace()
  return Unicode::tables().class_of(code) & kSpace || (code >= 0x1c && code <= 0x1f);
}

bool is_blank(std::string_view text) {
  for (std::size_t at = 0; at < text.size();)
    if (!is_space(next_code(text, at))) return false;
  return true;
}

// Line breaks as \n, and without one at the end.
std::string with_line_ends(std::string_view source) {
  std::string out;
  for (std::size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r') {
      out += '\n';
      i += i + 1 < source.size() && source[i + 1] == '\n';
    } else {
      out += source[i];
    }
  }
  if (!out.empty() && out.back() == '\n') out.pop_back();
  return out;
}

bool is_name_start(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}
bool is_digit(char c) { return c >= '0' && c <= '9'; }

class Lexer {
 public:
  explicit Lexer(std::string_view source) : owned_(with_line_ends(source)), source_(owned_) {}

  std::vector<JinjaToken> all() {
    while (at_ < source_.size()) {
      const std::size_t open = next_tag();
      const char kind = open < source_.size() ? source_[open + 1] : '\0';
      text(open, kind);
      if (!kind) break;
      at_ = open + 2;
      const bool signed_tag = at_ < source_.size() && (source_[at_] == '-' || source_[at_] == '+');
      at_ += signed_tag;
      if (kind == '#') comment();
      else tag(kind == '%');
    }
    add(Kind::end, "");
    return std::move(tokens_);
  }

 private:
  void add(Kind kind, std::string text) {
    if (tokens_.size() >= kMostTokens) fail_template("it is too long");
    tokens_.push_back({kind, std::move(text)});
  }

  bool starts(std::string_view word) const { return source_.substr(at_, word.size()) == word; }

  std::size_t next_tag() const {
    for (std::size_t i = at_; i + 1 < source_.size(); ++i)
      if (source_[i] == '{' && std::string_view("{%#").find(source_[i + 1]) != source_.npos)
        return i;
    return source_.size();
  }

  // The text up to a tag, without the spaces that the tag takes.
  void text(std::size_t open, char kind) {
    std::string_view found = source_.substr(at_, open - at_);
    const char sign = open + 2 < source_.size() ? source_[open + 2] : '\0';
    if (kind && sign == '-') {
      std::size_t end = 0;
      for (std::size_t at = 0; at < found.size();)
        if (!is_space(next_code(found, at))) end = at;
      found = found.substr(0, end);
    } else if (kind && kind != '{' && sign != '+') {
      const std::size_t line = found.rfind('\n') + 1;
      if ((line > 0 || line_starts_) && is_blank(found.substr(line))) found = found.substr(0, line);
    }
    if (!found.empty()) add(Kind::text, std::string(found));
  }

  // Takes a tag's end; false: it is not here. `close` is its last two characters.
  bool take_end(std::string_view close, bool block) {
    const bool minus = starts("-"), plus = block && starts("+");
    if (source_.substr(at_ + (minus || plus), 2) != close) return false;
    at_ += 2 + std::size_t(minus || plus);
    const std::size_t from = at_;
    if (minus) {
      for (std::size_t next = at_; next < source_.size(); at_ = next)
        if (!is_space(next_code(source_, next))) break;
    } else if (block && !plus && starts("\n")) {
      ++at_;
    }
    line_starts_ = at_ > from && source_[at_ - 1] == '\n';
    return true;
  }

  void comment() {
    while (at_ < source_.size()) {
      if (take_end("#}", true)) return;
      ++at_;
    }
    fail_template("a comment has no end");
  }

  void tag(bool block) {
    add(block ? Kind::block_begin : Kind::output_begin, "");
    std::vector<char> open;
    for (;;) {
      while (at_ < source_.size() && is_blank(source_.substr(at_, 1))) ++at_;
      if (at_ >= source_.size()) fail_template("a tag has no end");
      if (open.empty() && take_end(block ? "%}" : "}}", block)) break;
      const char c = source_[at_];
      if (c == '(' || c == '[' || c == '{') open.push_back(c == '(' ? ')' : c == '[' ? ']' : '}');
      if (c == ')' || c == ']' || c == '}') {
        if (open.empty() || open.back() != c) fail_template("brackets do not match");
        open.pop_back();
      }
      inside(c);
    }
    add(block ? Kind::block_end : Kind::output_end, "");
  }

  void inside(char c) {
    const std::size_t from = at_;
    if (is_name_start(c)) {
      while (at_ < source_.size() && (is_name_start(source_[at_]) || is_digit(source_[at_]))) ++at_;
      add(Kind::name, std::string(source_.substr(from, at_ - from)));
    } else if (is_digit(c)) {
      number();
    } else if (c == '\'' || c == '"') {
      string(c);
    } else {
      static constexpr std::array<std::string_view, 7> kLong = {"//", "**", "==", "!=",
                                                                ">=", "<=", ""};
      for (const std::string_view word : kLong) {
        if (word.empty() || !starts(word)) continue;
        at_ += word.size();
        return add(Kind::symbol, std::string(word));
      }
      if (std::string_view("+-/*%~[](){}><=.:|,").find(c) == source_.npos)
        fail_template(std::string("the character '") + c + "' stands where none may");
      ++at_;
      add(Kind::symbol, std::string(1, c));
    }
  }

  void number() {
    const std::size_t from = at_;
    const auto digits = [&] { while (at_ < source_.size() && is_digit(source_[at_])) ++at_; };
    digits();
    if (source_[from] == '0' && at_ > from + 1) lack_template("a number that begins with 0");
    bool real = false;
    if (at_ + 1 < source_.size() && source_[at_] == '.' && is_digit(source_[at_ + 1])) {
      ++at_;
      digits();
      real = true;
    }
    const std::size_t mark = at_;
    if (starts("e") || starts("E")) {
      ++at_;
      if (starts("+") || starts("-")) ++at_;
      const std::size_t exponent = at_;
      digits();
      real = true;
      if (at_ == exponent) at_ = mark;
    }
    if (at_ < source_.size() && is_name_start(source_[at_]))
      lack_template("a number of this form");
    add(real ? Kind::real : Kind::integer, std::string(source_.substr(from, at_ - from)));
  }

  void string(char quote) {
    std::string out;
    for (++at_; at_ < source_.size() && source_[at_] != quote;) {
      const char c = source_[at_++];
      if (c != '\\') out += c;
      else escape(out);
    }
    if (at_ >= source_.size()) fail_template("a string has no end");
    ++at_;
    add(Kind::string, out);
  }

  // As in Python's strings; others keep their backslash.
  void escape(std::string& out) {
    if (at_ >= source_.size()) return;
    const char c = source_[at_++];
    const std::string_view letters = "ntrabfv\\'\"", meaning = "\n\t\r\a\b\f\v\\'\"";
    const std::size_t index = letters.find(c);
    if (index != letters.npos) {
      out += meaning[index];
    } else if (c == 'x' || c == 'u' || c == 'U') {
      const std::size_t size = c == 'x' ? 2 : c == 'u' ? 4 : 8;
      const std::string_view hex = source_.substr(at_, size);
      uint32_t code = 0;
      const auto read = std::from_chars(hex.data(), hex.data() + hex.size(), code, 16);
      if (hex.size() < size || read.ptr != hex.data() + size || code > 0x10ffff ||
          (code >= 0xd800 && code < 0xe000))
        fail_template("a wrong escape in a string");
      at_ += size;
      append_code(out, code);
    } else if (is_digit(c) || c == 'N') {
      lack_template(std::string("the escape \\") + c);
    } else if (c != '\n') {  // a line goes on
      out += '\\';
      out += c;
    }
  }

  std::string owned_;
  std::string_view source_;
  std::size_t at_ = 0;
  bool line_starts_ = true;
  std::vector<JinjaToken> tokens_;
};

}  // namespace

std::vector<JinjaToken> jinja_tokens(std::string_view source) { return Lexer(source).all(); }

}  // namespace edgeqat
