#include "jinja_strings.h"

#include "unicode.h"
#include "utf8.h"

namespace edgeqat {
namespace {

constexpr uint32_t kSigma = 0x3a3, kSharpS = 0xdf, kGreekFirst = 0x1f80, kGreekLast = 0x1fff;

bool is_space(uint32_t code) {  // Python's str.isspace()
  return Unicode::tables().class_of(code) & kSpace || (code >= 0x1c && code <= 0x1f);
}

bool holds(const std::string& set, uint32_t wanted) {
  for (std::size_t at = 0; at < set.size();)
    if (next_code(set, at) == wanted) return true;
  return false;
}

void append_upper(std::string& out, uint32_t code) {
  const Unicode& unicode = Unicode::tables();
  const uint32_t capital = unicode.upper(code);
  const bool special = code == kSharpS || (code >= kGreekFirst && code <= kGreekLast) ||
                       (code >= 0x80 && capital == code && unicode.class_of(code) & kSmall);
  if (special) lack_template("the capital of a letter that may have several");
  append_code(out, capital);
}

}  // namespace

std::string stripped(const std::string& text, const std::string* set, bool left, bool right) {
  std::size_t begin = text.size(), end = 0;  // of what stays
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t from = at;
    const uint32_t code = next_code(text, at);
    if (set ? holds(*set, code) : is_space(code)) continue;
    if (begin == text.size()) begin = from;
    end = at;
  }
  if (end == 0) return left || right ? "" : text;
  if (!left) begin = 0;
  if (!right) end = text.size();
  return text.substr(begin, end - begin);
}

Value::List split_text(const std::string& text, const std::string* separator, int64_t most) {
  Value::List parts;
  std::size_t at = 0;
  if (separator) {
    if (separator->empty()) fail_template("split: the separator is empty");
    for (; most < 0 || int64_t(parts.size()) < most;) {
      const std::size_t found = text.find(*separator, at);
      if (found == text.npos) break;
      parts.push_back(Value::string(text.substr(at, found - at)));
      at = found + separator->size();
    }
    parts.push_back(Value::string(text.substr(at)));
    return parts;
  }
  while (at < text.size()) {
    std::size_t next = at;
    if (is_space(next_code(text, next))) {
      at = next;
      continue;
    }
    std::size_t end = at;
    const bool last = most >= 0 && int64_t(parts.size()) >= most;
    for (next = at; next < text.size(); end = next)
      if (is_space(next_code(text, next)) && !last) break;
    parts.push_back(Value::string(text.substr(at, end - at)));
    at = end;
  }
  return parts;
}

std::string replaced_text(const std::string& text, const std::string& from, const std::string& to,
                          int64_t most) {
  if (from.empty()) lack_template("a replacement of nothing");
  std::string out;
  std::size_t at = 0;
  for (std::size_t found; most != 0 && (found = text.find(from, at)) != text.npos; --most) {
    out.append(text, at, found - at).append(to);
    check_template_text(out.size());
    at = found + from.size();
  }
  return out.append(text, at, text.npos);
}

std::string lower_text(const std::string& text) {
  std::string out;
  for (std::size_t at = 0; at < text.size();) {
    const uint32_t code = next_code(text, at);
    if (code == kSigma) lack_template("the small letter of a sigma");
    Unicode::tables().append_lower(out, code);
  }
  return out;
}

std::string upper_text(const std::string& text) {
  std::string out;
  for (std::size_t at = 0; at < text.size();) append_upper(out, next_code(text, at));
  return out;
}

std::string capitalized(const std::string& text) {
  if (text.empty()) return text;
  std::size_t at = 0;
  next_code(text, at);
  return upper_text(text.substr(0, at)) + lower_text(text.substr(at));
}

std::string title_text(const std::string& text) {
  std::string out, word;
  const auto finish = [&] {
    out += capitalized(word);
    word.clear();
  };
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t from = at;
    const uint32_t code = next_code(text, at);
    const bool opens = code == '-' || code == '(' || code == '{' || code == '[' || code == '<';
    const bool between = opens || is_space(code);
    if (!between) {
      word.append(text, from, at - from);
      continue;
    }
    finish();
    out.append(text, from, at - from);
  }
  finish();
  return out;
}

int64_t count_of_characters(std::string_view text) {
  int64_t count = 0;
  for (std::size_t at = 0; at < text.size(); ++count) next_code(text, at);
  return count;
}

}  // namespace edgeqat
