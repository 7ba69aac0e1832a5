// What a caller can cause, in one line: the field, the value, what to do.
#pragma once

#include <stdexcept>
#include <string>

namespace edgeqat {

// Thrown inside the library; the C ABI turns it into a status and a message.
struct Error : std::runtime_error {
  explicit Error(const std::string& message) : std::runtime_error(message) {}
};

// A model or scheme this engine does not run, though the folder is sound: callers may fall back.
struct Unsupported : Error {
  using Error::Error;
};

}  // namespace edgeqat
