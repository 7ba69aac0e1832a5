// UTF-8 in and out. Bytes that are not UTF-8 count as U+FFFD, one for each longest beginning of a
// code point, as Python's errors="replace" has it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace edgeqat {

constexpr uint32_t kReplacement = 0xfffd;

// The code point at `at`, which moves behind it.
uint32_t next_code(std::string_view text, std::size_t& at);

void append_code(std::string& out, uint32_t code);

// The text with broken bytes replaced.
std::string sound_utf8(std::string_view text);

bool is_utf8(std::string_view text);

}  // namespace edgeqat
