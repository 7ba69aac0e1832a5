// Parts of values: attributes, items, what a loop goes through, what `in` finds.

#include "jinja_builtins.h"
#include "utf8.h"

namespace edgeqat {

using Kind = Value::Kind;

Value::List jinja_elements(const Value& value) {
  Value::List all;
  if (value.is(Kind::list) || value.is(Kind::generator)) return value.values();
  if (value.is(Kind::dict)) {
    for (const auto& member : value.members()) all.push_back(Value::string(member.first));
  } else if (value.is(Kind::string)) {
    const std::string& text = value.text();
    if (text.size() > (1 << 20)) fail_template("a text is too long for a loop");
    for (std::size_t at = 0, from = 0; at < text.size(); from = at) {
      next_code(text, at);
      all.push_back(Value::string(text.substr(from, at - from)));
    }
  } else if (!value.is(Kind::undefined)) {
    fail_template(std::string("a value that is ") + value.kind_name() + " has no elements");
  }
  return all;
}

bool jinja_contains(const Value& container, const Value& element) {
  if (container.is(Kind::undefined)) return false;
  if (container.is(Kind::string)) {
    if (!element.is(Kind::string)) fail_template("only a string can be in a string");
    return container.text().find(element.text()) != std::string::npos;
  }
  if (container.is(Kind::dict)) return element.is(Kind::string) && container.find(element.text());
  if (!container.is(Kind::list) && !container.is(Kind::generator))
    fail_template(std::string("nothing is in a value that is ") + container.kind_name());
  for (const Value& value : container.values())
    if (value.equals(element)) return true;
  return false;
}

bool jinja_less(const Value& left, const Value& right) {
  if (left.is_number() && right.is_number()) return left.number() < right.number();
  if (left.is(Kind::string) && right.is(Kind::string)) return left.text() < right.text();
  fail_template(std::string("values that are ") + left.kind_name() + " and " + right.kind_name() +
                " have no order");
}

Value jinja_attribute(const Value& value, const std::string& name) {
  if (value.is(Kind::undefined)) fail_template("'" + value.text() + "' is undefined");
  if (value.is(Kind::dict) || value.is(Kind::space)) {
    if (value.is(Kind::dict) && is_method_of_dict(name)) return Value::method(name, value);
    const Value* found = value.find(name);
    return found ? *found : Value::undefined(name);
  }
  if (value.is(Kind::string) && is_method_of_string(name)) return Value::method(name, value);
  if (value.is(Kind::list) && (name == "append" || name == "index" || name == "count"))
    lack_template("the method '" + name + "' of a list");
  return Value::undefined(name);
}

Value jinja_item(const Value& value, const Value& key) {
  if (value.is(Kind::undefined)) fail_template("'" + value.text() + "' is undefined");
  if (value.is(Kind::dict) && key.is(Kind::string)) {
    const Value* found = value.find(key.text());
    return found ? *found : Value::undefined(key.text());
  }
  if ((value.is(Kind::list) || value.is(Kind::string)) && key.is_whole()) {
    const Value::List all = value.is(Kind::list) ? Value::List() : jinja_elements(value);
    const Value::List& elements = value.is(Kind::list) ? value.values() : all;
    const int64_t size = int64_t(elements.size());
    const int64_t index = key.whole() < 0 ? key.whole() + size : key.whole();
    if (index >= 0 && index < size) return elements[std::size_t(index)];
    return Value::undefined("element " + std::to_string(key.whole()));
  }
  if (key.is(Kind::string) && !value.is(Kind::dict)) return jinja_attribute(value, key.text());
  return Value::undefined("element");
}

}  // namespace edgeqat
