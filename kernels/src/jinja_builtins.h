// The filters, tests, methods and functions of templates.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "jinja_value.h"

namespace edgeqat {

struct JinjaArguments {
  std::vector<Value> plain;
  std::vector<std::pair<std::string, Value>> named;

  // By its place or by its name; nullptr: not given.
  const Value* find(std::size_t place, const char* name = "") const;
  const Value& at(std::size_t place, const char* name = "") const;  // one that must be given
};

// An Unsupported where there is none of this name.
Value jinja_filter(const std::string& name, const Value& value, const JinjaArguments& arguments);
bool jinja_test(const std::string& name, const Value& value, const JinjaArguments& arguments);
Value jinja_method(const std::string& name, const Value& owner, const JinjaArguments& arguments);
Value jinja_function(const std::string& name, const JinjaArguments& arguments);

// Refuse arguments that a filter or method does not take.
void check_jinja_filter(const std::string& name, const JinjaArguments& arguments);
void check_jinja_method(const std::string& name, const JinjaArguments& arguments);

bool is_jinja_function(const std::string& name);
bool is_method_of_dict(const std::string& name);
bool is_method_of_string(const std::string& name);

// What a loop over a value goes through.
Value::List jinja_elements(const Value& value);
bool jinja_contains(const Value& container, const Value& element);
bool jinja_less(const Value& left, const Value& right);
Value jinja_attribute(const Value& value, const std::string& name);
Value jinja_item(const Value& value, const Value& key);

}  // namespace edgeqat
