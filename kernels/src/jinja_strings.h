// Python's methods of strings that templates use.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "jinja_value.h"

namespace edgeqat {

// Without characters at its ends: those of `set`, or spaces where it is nullptr.
std::string stripped(const std::string& text, const std::string* set, bool left, bool right);

// Parts between separators; nullptr: between runs of spaces. most: of cuts; -1: all.
Value::List split_text(const std::string& text, const std::string* separator, int64_t most);

// most: of replacements; -1: all.
std::string replaced_text(const std::string& text, const std::string& from, const std::string& to,
                          int64_t most);

std::string lower_text(const std::string& text);
std::string upper_text(const std::string& text);
std::string capitalized(const std::string& text);
std::string title_text(const std::string& text);  // of Jinja's filter
int64_t count_of_characters(std::string_view text);

}  // namespace edgeqat
