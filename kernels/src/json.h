// A strict JSON reader for config.json and the header of safetensors: objects with unique keys, no
// extensions, bounded depth. Anything else is an Error.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace edgeqat {

class Json {
 public:
  enum class Kind { null, boolean, number, string, array, object };

  // `what` names the text in errors.
  static Json parse(std::string_view text, const std::string& what);

  Kind kind() const { return kind_; }
  bool is_null() const { return kind_ == Kind::null; }
  bool is_whole() const;  // a number written without a point or an exponent
  bool fits() const;      // a whole number of 64 bits

  // Typed access; a value of another kind is an Error that names `path()`.
  bool boolean() const;
  double number() const;
  int64_t integer(int64_t least, int64_t most) const;
  const std::string& string() const;
  const std::vector<Json>& array() const;
  const std::map<std::string, Json>& object() const;

  // Members of an object: `at` demands one, `find` gives null when absent or null.
  const Json& at(const std::string& key) const;
  const Json* find(const std::string& key) const;

 private:
  friend class JsonReader;

  [[noreturn]] void fail(const std::string& expected) const;

  Kind kind_ = Kind::null;
  bool boolean_ = false;
  double number_ = 0;
  std::string text_;  // of a string; of a number, as it was written
  std::vector<Json> array_;
  std::map<std::string, Json> object_;
  std::string name_;  // the key it was found under
};

}  // namespace edgeqat
