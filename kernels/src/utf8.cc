#include "utf8.h"

namespace edgeqat {
namespace {

// Reads one code point; false: the bytes from `at` on that were passed are not one.
bool read_code(std::string_view text, std::size_t& at, uint32_t& code) {
  const auto byte = [&](std::size_t i) { return uint32_t(static_cast<unsigned char>(text[i])); };
  const uint32_t first = byte(at++);
  code = first;
  if (first < 0x80) return true;
  if (first < 0xc2 || first > 0xf4) return false;
  const int more = first < 0xe0 ? 1 : first < 0xf0 ? 2 : 3;
  code = first & (0x3f >> more);
  uint32_t least = first == 0xe0 ? 0xa0 : first == 0xf0 ? 0x90 : 0x80;
  uint32_t most = first == 0xed ? 0x9f : first == 0xf4 ? 0x8f : 0xbf;
  for (int i = 0; i < more; ++i, ++at) {
    if (at >= text.size() || byte(at) < least || byte(at) > most) return false;
    code = code << 6 | (byte(at) & 0x3f);
    least = 0x80, most = 0xbf;
  }
  return true;
}

}  // namespace

uint32_t next_code(std::string_view text, std::size_t& at) {
  uint32_t code;
  return read_code(text, at, code) ? code : kReplacement;
}

void append_code(std::string& out, uint32_t code) {
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

bool is_utf8(std::string_view text) {
  uint32_t code;
  for (std::size_t at = 0; at < text.size();)
    if (!read_code(text, at, code)) return false;
  return true;
}

std::string sound_utf8(std::string_view text) {
  if (is_utf8(text)) return std::string(text);
  std::string out;
  for (std::size_t at = 0; at < text.size();) append_code(out, next_code(text, at));
  return out;
}

}  // namespace edgeqat
