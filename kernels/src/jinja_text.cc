// Values as text: Python's str(), repr() and json.dumps().

#include <charconv>
#include <cmath>
#include <cstdio>

#include "jinja_value.h"
#include "unicode.h"
#include "utf8.h"

namespace edgeqat {
namespace {

// The shortest digits that are this number, as Python writes them.
std::string text_of(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  char buffer[64];
  const auto end =
      std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::scientific);
  const std::string written(buffer, end.ptr);
  const std::size_t mark = written.find('e');
  const int exponent = std::stoi(written.substr(mark + 1));
  std::string digits = written.substr(0, mark);
  if (exponent < -4 || exponent >= 16) {
    char tail[16];
    std::snprintf(tail, sizeof tail, "e%c%02d", exponent < 0 ? '-' : '+', std::abs(exponent));
    return digits + tail;
  }
  const std::string sign = digits[0] == '-' ? "-" : "";
  digits.erase(0, sign.size());
  if (digits.size() > 1) digits.erase(1, 1);
  if (exponent < 0) return sign + "0." + std::string(std::size_t(-exponent - 1), '0') + digits;
  if (digits.size() <= std::size_t(exponent)) digits.resize(std::size_t(exponent) + 1, '0');
  const std::string rest = digits.substr(std::size_t(exponent) + 1);
  return sign + digits.substr(0, std::size_t(exponent) + 1) + "." + (rest.empty() ? "0" : rest);
}

void append_quoted(std::string& out, const std::string& text) {
  const bool doubled = text.find('\'') != text.npos && text.find('"') == text.npos;
  const char quote = doubled ? '"' : '\'';
  out += quote;
  for (std::size_t at = 0; at < text.size();) {
    const uint32_t code = next_code(text, at);
    const uint32_t bits = Unicode::tables().class_of(code);
    char escape[16];
    if (code == uint32_t(quote) || code == '\\') {
      out += '\\';
      out += char(code);
    } else if (code == '\n' || code == '\r' || code == '\t') {
      out += code == '\n' ? "\\n" : code == '\r' ? "\\r" : "\\t";
    } else if (code != ' ' && (bits & (kControl | kSeparator))) {
      const char* format = code < 0x100 ? "\\x%02x" : code < 0x10000 ? "\\u%04x" : "\\U%08x";
      std::snprintf(escape, sizeof escape, format, unsigned(code));
      out += escape;
    } else {
      append_code(out, code);
    }
  }
  out += quote;
}

void append_json_text(std::string& out, const std::string& text) {
  out += '"';
  for (const char c : text) {
    const std::string_view special = "\"\\\b\f\n\r\t", letters = "\"\\bfnrt";
    const std::size_t at = special.find(c);
    if (at != special.npos) {
      out += '\\';
      out += letters[at];
    } else if (static_cast<unsigned char>(c) < 0x20) {
      char escape[8];
      std::snprintf(escape, sizeof escape, "\\u%04x", unsigned(c));
      out += escape;
    } else {
      out += c;
    }
  }
  out += '"';
}

}  // namespace

void Value::append_repr(std::string& out) const {
  const char* comma = "";
  check_template_text(out.size());
  switch (kind_) {
    case Kind::undefined: out += "Undefined"; return;
    case Kind::none: out += "None"; return;
    case Kind::boolean: out += integer_ ? "True" : "False"; return;
    case Kind::integer: out += std::to_string(integer_); return;
    case Kind::real: out += text_of(real_); return;
    case Kind::string: append_quoted(out, *text_); return;
    case Kind::list:
      out += tuple_ ? '(' : '[';
      for (const Value& value : *list_) {
        out += comma;
        value.append_repr(out);
        comma = ", ";
      }
      if (tuple_ && list_->size() == 1) out += ',';
      out += tuple_ ? ')' : ']';
      return;
    case Kind::dict:
      out += '{';
      for (const auto& [key, value] : *dict_) {
        out += comma;
        append_quoted(out, key);
        out += ": ";
        value.append_repr(out);
        comma = ", ";
      }
      out += '}';
      return;
    default: lack_template(std::string("the text of a ") + kind_name());
  }
}

std::string Value::quoted() const {
  std::string out;
  append_repr(out);
  return out;
}

std::string Value::shown() const {
  if (is(Kind::string)) return *text_;
  return is(Kind::undefined) ? "" : quoted();
}

void Value::append_json(std::string& out, int indent, int level) const {
  check_template_text(out.size());
  const bool lines = indent >= 0;
  bool first = true;
  const auto separate = [&](int depth) {
    if (lines) out += (first ? "\n" : ",\n") + std::string(std::size_t(indent * depth), ' ');
    else if (!first) out += ", ";
    first = false;
  };
  const auto close = [&](char bracket) {
    if (lines && !first) out += "\n" + std::string(std::size_t(indent * level), ' ');
    out += bracket;
  };
  switch (kind_) {
    case Kind::none: out += "null"; return;
    case Kind::boolean: out += integer_ ? "true" : "false"; return;
    case Kind::integer: out += std::to_string(integer_); return;
    case Kind::real:
      if (!std::isfinite(real_)) lack_template("JSON of a number that is not finite");
      out += text_of(real_);
      return;
    case Kind::string: append_json_text(out, *text_); return;
    case Kind::list:
      out += '[';
      for (const Value& value : *list_) {
        separate(level + 1);
        value.append_json(out, indent, level + 1);
      }
      return close(']');
    case Kind::dict:
      out += '{';
      for (const auto& [key, value] : *dict_) {
        separate(level + 1);
        append_json_text(out, key);
        out += ": ";
        value.append_json(out, indent, level + 1);
      }
      return close('}');
    default: fail_template(std::string("a value that is ") + kind_name() + " is no JSON");
  }
}

std::string Value::json(int indent) const {
  std::string out;
  append_json(out, indent, 0);
  return out;
}

}  // namespace edgeqat
