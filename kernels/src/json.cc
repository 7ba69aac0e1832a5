#include "json.h"

#include <charconv>

#include "error.h"
#include "json_reader.h"

namespace edgeqat {

Json Json::parse(std::string_view text, const std::string& what) {
  JsonReader reader(text, what);
  Json value = reader.value(what);
  reader.finish();
  return value;
}

void Json::fail(const std::string& expected) const {
  throw Error(name_ + ": " + expected + " was expected; copy the folder again");
}

bool Json::boolean() const {
  if (kind_ != Kind::boolean) fail("true or false");
  return boolean_;
}

bool Json::is_whole() const {
  return kind_ == Kind::number && text_.find_first_of(".eE") == text_.npos;
}

bool Json::fits() const {
  int64_t value = 0;
  const char* end = text_.data() + text_.size();
  const auto read = std::from_chars(text_.data(), end, value);
  return kind_ == Kind::number && read.ec == std::errc() && read.ptr == end;
}

double Json::number() const {
  if (kind_ != Kind::number) fail("a number");
  return number_;
}

int64_t Json::integer(int64_t least, int64_t most) const {
  int64_t value = 0;
  const char* end = text_.data() + text_.size();
  bool whole = kind_ == Kind::number;
  if (whole) {
    const auto read = std::from_chars(text_.data(), end, value);
    whole = read.ec == std::errc() && read.ptr == end && value >= least && value <= most;
  }
  if (!whole) fail("a whole number from " + std::to_string(least) + " to " + std::to_string(most));
  return value;
}

const std::string& Json::string() const {
  if (kind_ != Kind::string) fail("a string");
  return text_;
}

const std::vector<Json>& Json::array() const {
  if (kind_ != Kind::array) fail("a list");
  return array_;
}

const std::map<std::string, Json>& Json::object() const {
  if (kind_ != Kind::object) fail("an object");
  return object_;
}

const Json& Json::at(const std::string& key) const {
  const auto found = object().find(key);
  if (found == object_.end())
    throw Error(name_ + ": '" + key + "' is missing; copy the folder again");
  return found->second;
}

const Json* Json::find(const std::string& key) const {
  const auto found = object().find(key);
  return found == object_.end() || found->second.is_null() ? nullptr : &found->second;
}

}  // namespace edgeqat
