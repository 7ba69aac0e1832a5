#include "byte_characters.h"

#include <array>

#include "utf8.h"

namespace edgeqat {
namespace {

constexpr uint32_t kFirstMoved = 256;  // bytes that are not printable come from here on, in order

bool printable(uint32_t byte) {
  return (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
}

struct Alphabet {
  std::array<std::string, 256> text;
  std::array<int, 2 * 256> bytes;

  Alphabet() {
    bytes.fill(-1);
    uint32_t moved = kFirstMoved;
    for (uint32_t byte = 0; byte < 256; ++byte) {
      const uint32_t code = printable(byte) ? byte : moved++;
      append_code(text[byte], code);
      bytes[code] = int(byte);
    }
  }
};

const Alphabet& alphabet() {
  static const Alphabet made;
  return made;
}

}  // namespace

void append_byte_characters(std::string& out, std::string_view bytes) {
  const Alphabet& letters = alphabet();
  for (const char byte : bytes) out += letters.text[static_cast<unsigned char>(byte)];
}

int byte_of_character(uint32_t code) {
  return code < alphabet().bytes.size() ? alphabet().bytes[code] : -1;
}

}  // namespace edgeqat
