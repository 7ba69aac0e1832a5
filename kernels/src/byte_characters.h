// GPT-2's alphabet: a printable character for each byte, so that any bytes are a text.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace edgeqat {

// Appends the characters of the bytes.
void append_byte_characters(std::string& out, std::string_view bytes);

// The byte of a character, or -1.
int byte_of_character(uint32_t code);

}  // namespace edgeqat
