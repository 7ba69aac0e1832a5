// Values of a template: what JSON holds, undefined ones, namespaces and functions. Lists and dicts
// cannot be changed; a namespace can, and is in no other value, so that nothing contains itself.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace edgeqat {

class Value {
 public:
  enum class Kind {
    undefined, none, boolean, integer, real, string, list, dict, space, method,
    generator  // what a loop goes through once: of map, select, reverse ...
  };
  using List = std::vector<Value>;
  using Dict = std::vector<std::pair<std::string, Value>>;  // in the order of its making

  Value() = default;  // undefined
  static Value undefined(const std::string& name);
  static Value none();
  static Value boolean(bool value);
  static Value integer(int64_t value);
  static Value real(double value);
  static Value string(std::string text);
  static Value list(List values);
  static Value tuple(List values);
  static Value generator(List values);
  static Value dict(Dict values);
  static Value space(Dict values);
  // A function (owner undefined), or a method of a value.
  static Value method(const std::string& name, const Value& owner);

  Kind kind() const { return kind_; }
  bool is(Kind kind) const { return kind_ == kind; }
  bool is_tuple() const { return tuple_; }
  bool is_number() const { return is(Kind::integer) || is(Kind::real) || is(Kind::boolean); }
  bool is_whole() const { return is(Kind::integer) || is(Kind::boolean); }

  int64_t whole() const { return integer_; }
  double number() const { return is(Kind::real) ? real_ : double(integer_); }
  const std::string& text() const { return *text_; }  // of a string; of others their name
  const List& values() const { return *list_; }       // of a list; of a method its owner
  const Dict& members() const { return *dict_; }      // of a dict or namespace
  bool has_owner() const { return list_ != nullptr; }  // of a method; functions have none

  const Value* find(std::string_view key) const;  // of a dict or namespace
  void assign(const std::string& key, const Value& value) const;  // of a namespace

  bool truth() const;
  std::string shown() const;  // Python's str()
  std::string quoted() const;  // Python's repr()
  std::string json(int indent) const;  // Python's json.dumps(); indent -1: one line
  bool equals(const Value& other) const;
  const char* kind_name() const;

 private:
  void weigh(const Value& part);
  void append_repr(std::string& out) const;
  void append_json(std::string& out, int indent, int level) const;

  Kind kind_ = Kind::undefined;
  bool tuple_ = false;  // a list that Python shows in round brackets
  int64_t integer_ = 0;
  double real_ = 0;
  std::shared_ptr<const std::string> text_ = std::make_shared<const std::string>();
  std::shared_ptr<const List> list_;
  std::shared_ptr<Dict> dict_;
  uint32_t depth_ = 0, weight_ = 1;  // of nested lists and dicts; all values in them
};

// What a template or its caller did wrong, in one line.
[[noreturn]] void fail_template(const std::string& problem);
[[noreturn]] void lack_template(const std::string& construct);  // an Unsupported

constexpr std::size_t kMostTemplateText = std::size_t(1) << 24;

// The text, unless it is too long.
void check_template_text(std::size_t size);

}  // namespace edgeqat
