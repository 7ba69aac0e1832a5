// Walks through JSON text, strictly: values one after another without a tree of them, or as Json.
#pragma once

#include <string>
#include <string_view>

#include "json.h"

namespace edgeqat {

class JsonReader {
 public:
  // `what` names the text in errors.
  JsonReader(std::string_view text, const std::string& what) : text_(text), what_(what) {}

  // The next value; `name` names it in errors.
  Json value(const std::string& name);
  std::string string();
  void skip();  // a value of any kind
  void finish();  // nothing but blanks may be left

  // The first character of the next value.
  char peek() {
    blanks();
    return current();
  }

  // Calls each(key) before every value of an object; it must read the value.
  template <class Each>
  void members(const Each& each) {
    open('{');
    for (bool more = !closes('}'); more; more = continues('}')) {
      blanks();
      const std::string key = string();
      blanks();
      expect(':');
      each(key);
    }
    --depth_;
  }

  // Calls each() before every value of an array; it must read the value.
  template <class Each>
  void elements(const Each& each) {
    open('[');
    for (bool more = !closes(']'); more; more = continues(']')) each();
    --depth_;
  }

 private:
  [[noreturn]] void fail(const char* problem) const;
  char current() const { return at_ < text_.size() ? text_[at_] : '\0'; }
  void blanks();
  void expect(char wanted);
  bool take(std::string_view word);
  void open(char bracket);
  bool closes(char bracket);
  bool continues(char bracket);
  std::string_view number();
  uint32_t hex4();
  void escape(std::string& out);

  std::string_view text_;
  std::string what_;
  std::size_t at_ = 0;
  int depth_ = 0;
};

}  // namespace edgeqat
