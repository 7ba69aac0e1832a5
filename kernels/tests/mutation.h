// Damaged JSON: other values, other words, broken bytes.
#pragma once

#include <string>
#include <vector>

#include "expect.h"

namespace edgeqat {

constexpr const char* kJsonNumbers[] = {
    "0", "1", "-1", "3", "7", "31", "33", "64", "255", "65537", "16777217", "2147483648",
    "4294967295", "1099511627777", "9223372036854775807", "18446744073709551616", "1e308", "1e999",
    "0.5", "null", "true", "\"8\"", "[]", "{}"};

template <std::size_t N>
std::string pick(Random& random, const char* const (&words)[N]) {
  return words[random.below(N)];
}

// A few edits; `words` are strings that the format knows.
void mutate(Random& random, std::string& json, const std::vector<std::string>& words);

}  // namespace edgeqat
