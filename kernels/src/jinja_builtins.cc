#include "jinja_builtins.h"

#include <charconv>
#include <cmath>
#include <ctime>
#include <set>

#include "jinja_strings.h"

namespace edgeqat {
namespace {

using Kind = Value::Kind;

constexpr int64_t kLongestRange = 100000;

// A text, of a value that may be undefined or a number too, as Jinja's filters take it.
std::string text_of(const Value& value) { return value.shown(); }

const std::string& string_of(const Value& value, const char* what) {
  if (!value.is(Kind::string))
    fail_template(std::string(what) + ": a string was expected, this is " + value.kind_name());
  return value.text();
}

int64_t whole_of(const Value* value, int64_t otherwise) {
  if (!value || value->is(Kind::none)) return otherwise;
  if (!value->is_whole()) fail_template("a whole number was expected");
  return value->whole();
}

const std::string* set_of(const Value* value) {
  return value && !value->is(Kind::none) ? &string_of(*value, "strip") : nullptr;
}

int64_t length_of(const Value& value) {
  if (value.is(Kind::string)) return count_of_characters(value.text());
  if (value.is(Kind::dict)) return int64_t(value.members().size());
  if (value.is(Kind::list)) return int64_t(value.values().size());
  if (value.is(Kind::undefined)) return 0;
  fail_template(std::string("a value that is ") + value.kind_name() + " has no length");
}

std::string joined(const Value& values, const std::string& separator) {
  std::string out;
  bool first = true;
  for (const Value& value : jinja_elements(values)) {
    if (!first) out += separator;
    out += text_of(value);
    check_template_text(out.size());
    first = false;
  }
  return out;
}

Value pairs_of(const Value& value) {
  if (value.is(Kind::undefined)) return Value::list({});
  if (!value.is(Kind::dict)) fail_template("items: a dict was expected");
  Value::List pairs;
  for (const auto& [key, member] : value.members())
    pairs.push_back(Value::tuple({Value::string(key), member}));
  return Value::list(std::move(pairs));
}

// An attribute, also of attributes: "function.name".
Value attribute_of(const Value& value, const std::string& path) {
  Value found = value;
  for (std::size_t at = 0; at <= path.size();) {
    const std::size_t dot = std::min(path.find('.', at), path.size());
    found = jinja_item(found, Value::string(path.substr(at, dot - at)));
    at = dot + 1;
  }
  return found;
}

Value mapped(const Value& values, const JinjaArguments& arguments) {
  const Value* attribute = arguments.find(~std::size_t(0), "attribute");
  const Value* otherwise = arguments.find(~std::size_t(0), "default");
  JinjaArguments rest;
  if (!attribute)
    rest.plain.assign(arguments.plain.begin() + !arguments.plain.empty(), arguments.plain.end());
  Value::List made;
  for (const Value& value : jinja_elements(values)) {
    Value found = attribute ? attribute_of(value, string_of(*attribute, "map"))
                            : jinja_filter(string_of(arguments.at(0), "map"), value, rest);
    if (otherwise && found.is(Kind::undefined)) found = *otherwise;
    made.push_back(std::move(found));
  }
  return Value::generator(std::move(made));
}

// select, reject, selectattr, rejectattr
Value chosen(const std::string& name, const Value& values, const JinjaArguments& arguments) {
  const bool wanted = name[0] == 's';
  const std::size_t by_attribute = name.size() > 6;
  JinjaArguments rest;
  for (std::size_t i = by_attribute + 1; i < arguments.plain.size(); ++i)
    rest.plain.push_back(arguments.plain[i]);
  const Value* test = arguments.find(by_attribute);
  Value::List made;
  for (const Value& value : jinja_elements(values)) {
    const Value tested =
        by_attribute ? attribute_of(value, string_of(arguments.at(0), "selectattr")) : value;
    const bool holds =
        test ? jinja_test(string_of(*test, "select"), tested, rest) : tested.truth();
    if (holds == wanted) made.push_back(value);
  }
  return Value::generator(std::move(made));
}

Value number_of(const Value& value, const JinjaArguments& arguments, bool whole) {
  const Value* otherwise = arguments.find(0, "default");
  const Value missing = otherwise ? *otherwise : whole ? Value::integer(0) : Value::real(0);
  if (value.is_number()) {
    if (!whole) return Value::real(value.number());
    if (std::abs(value.number()) > 9e18) lack_template("a number as large as this");
    return Value::integer(value.is_whole() ? value.whole() : int64_t(value.number()));
  }
  if (value.is(Kind::undefined)) fail_template("'" + value.text() + "' is undefined");
  if (!value.is(Kind::string)) return missing;
  const std::string text = stripped(value.text(), nullptr, true, true);
  const char* end = text.data() + text.size();
  double real = 0;
  int64_t integer = 0;
  const auto number = std::from_chars(text.data(), end, real);
  if (text.empty() || number.ec != std::errc() || number.ptr != end) return missing;
  if (!whole) return Value::real(real);
  const auto read = std::from_chars(text.data(), end, integer);
  return Value::integer(read.ptr == end && read.ec == std::errc() ? integer : int64_t(real));
}

Value now(const std::string& format) {
  const std::time_t seconds = std::time(nullptr);
  std::tm parts{};
  localtime_r(&seconds, &parts);
  char text[256];
  return Value::string(std::string(text, std::strftime(text, sizeof text, format.c_str(), &parts)));
}

}  // namespace

const Value* JinjaArguments::find(std::size_t place, const char* name) const {
  if (place < plain.size()) return &plain[place];
  for (const auto& argument : named)
    if (argument.first == name) return &argument.second;
  return nullptr;
}

const Value& JinjaArguments::at(std::size_t place, const char* name) const {
  const Value* found = find(place, name);
  if (!found) fail_template("an argument is missing");
  return *found;
}

Value jinja_filter(const std::string& name, const Value& value, const JinjaArguments& arguments) {
  check_jinja_filter(name, arguments);
  if (name == "trim") {
    const Value* set = arguments.find(0, "chars");
    return Value::string(stripped(text_of(value), set_of(set), true, true));
  }
  if (name == "length" || name == "count") return Value::integer(length_of(value));
  if (name == "upper") return Value::string(upper_text(text_of(value)));
  if (name == "lower") return Value::string(lower_text(text_of(value)));
  if (name == "capitalize") return Value::string(capitalized(text_of(value)));
  if (name == "title") return Value::string(title_text(text_of(value)));
  if (name == "string" || name == "safe") return Value::string(text_of(value));
  if (name == "tojson") {
    for (const char* option : {"separators", "sort_keys"})
      if (arguments.find(option == std::string("separators") ? 2 : 3, option))
        lack_template("the argument '" + std::string(option) + "' of tojson");
    if (arguments.find(0, "ensure_ascii") && arguments.find(0, "ensure_ascii")->truth())
      lack_template("the argument 'ensure_ascii' of tojson");
    const int64_t indent = whole_of(arguments.find(1, "indent"), -1);
    return Value::string(value.json(int(std::min<int64_t>(indent, 64))));
  }
  if (name == "join") {
    if (arguments.find(1, "attribute")) lack_template("the argument 'attribute' of join");
    const Value* separator = arguments.find(0, "d");
    return Value::string(joined(value, separator ? text_of(*separator) : ""));
  }
  if (name == "default" || name == "d") {
    const Value* any = arguments.find(1, "boolean");
    const bool missing = value.is(Kind::undefined) || (any && any->truth() && !value.truth());
    if (!missing) return value;
    const Value* otherwise = arguments.find(0, "default_value");
    return otherwise ? *otherwise : Value::string("");
  }
  if (name == "first" || name == "last") {
    const Value::List all = jinja_elements(value);
    if (all.empty()) return Value::undefined(name + " element");
    return name == "first" ? all.front() : all.back();
  }
  if (name == "list") return Value::list(jinja_elements(value));
  if (name == "reverse") {
    Value::List all = jinja_elements(value);
    if (value.is(Kind::string)) {
      std::string text;
      for (auto part = all.rbegin(); part != all.rend(); ++part) text += part->text();
      return Value::string(text);
    }
    return Value::generator(Value::List(all.rbegin(), all.rend()));
  }
  if (name == "items") return Value::generator(pairs_of(value).values());
  if (name == "replace")
    return Value::string(replaced_text(text_of(value), text_of(arguments.at(0, "old")),
                                       text_of(arguments.at(1, "new")),
                                       whole_of(arguments.find(2, "count"), -1)));
  if (name == "int" || name == "float") return number_of(value, arguments, name == "int");
  if (name == "abs" && value.is_whole()) return Value::integer(std::abs(value.whole()));
  if (name == "map") return mapped(value, arguments);
  if (name == "select" || name == "reject" || name == "selectattr" || name == "rejectattr")
    return chosen(name, value, arguments);
  lack_template("the filter '" + name + "'");
}

bool jinja_test(const std::string& name, const Value& value, const JinjaArguments& arguments) {
  if (name == "defined") return !value.is(Kind::undefined);
  if (name == "undefined") return value.is(Kind::undefined);
  if (name == "none") return value.is(Kind::none);
  if (name == "string") return value.is(Kind::string);
  if (name == "number") return value.is_number();
  if (name == "integer") return value.is(Kind::integer);
  if (name == "float") return value.is(Kind::real);
  if (name == "boolean") return value.is(Kind::boolean);
  if (name == "mapping") return value.is(Kind::dict);
  if (name == "iterable" && value.is(Kind::generator)) return true;
  if (name == "iterable" || name == "sequence")
    return value.is(Kind::string) || value.is(Kind::list) || value.is(Kind::dict) ||
           value.is(Kind::undefined);
  if (name == "callable") return value.is(Kind::method);
  if (name == "true") return value.is(Kind::boolean) && value.truth();
  if (name == "false") return value.is(Kind::boolean) && !value.truth();
  if (name == "equalto" || name == "eq" || name == "==") return value.equals(arguments.at(0));
  if (name == "ne" || name == "!=") return !value.equals(arguments.at(0));
  if (name == "in") return jinja_contains(arguments.at(0), value);
  if (name == "lt" || name == "lessthan" || name == "<") return jinja_less(value, arguments.at(0));
  if (name == "gt" || name == "greaterthan" || name == ">")
    return jinja_less(arguments.at(0), value);
  if (name == "le" || name == "<=") return !jinja_less(arguments.at(0), value);
  if (name == "ge" || name == ">=") return !jinja_less(value, arguments.at(0));
  if (name == "odd" || name == "even") return (whole_of(&value, 0) % 2 != 0) == (name == "odd");
  if (name == "divisibleby") {
    const int64_t by = whole_of(&arguments.at(0), 0);
    if (by == 0) fail_template("divisibleby: nothing is divisible by 0");
    return by == -1 || whole_of(&value, 0) % by == 0;
  }
  lack_template("the test '" + name + "'");
}

bool is_method_of_dict(const std::string& name) {
  static const std::set<std::string> names = {"items", "keys",       "values",  "get",
                                              "pop",   "update",     "copy",    "setdefault",
                                              "clear", "popitem"};
  return names.count(name) > 0;
}

bool is_method_of_string(const std::string& name) {
  static const std::set<std::string> names = {
      "strip", "lstrip", "rstrip", "startswith", "endswith", "split", "upper", "lower", "replace",
      "capitalize", "join", "find", "count", "title", "rsplit", "splitlines", "format", "index",
      "isdigit", "isalpha", "isalnum", "isnumeric", "isupper", "islower", "isspace", "removeprefix",
      "removesuffix", "partition", "rpartition", "rfind", "zfill", "center", "ljust", "rjust",
      "encode", "casefold", "swapcase", "format_map", "translate", "expandtabs"};
  return names.count(name) > 0;
}

static bool starts_or_ends(const std::string& text, const Value& with, bool start) {
  if (with.is(Kind::list)) {
    for (const Value& one : with.values())
      if (starts_or_ends(text, one, start)) return true;
    return false;
  }
  const std::string& part = string_of(with, "startswith");
  if (part.size() > text.size()) return false;
  return text.compare(start ? 0 : text.size() - part.size(), part.size(), part) == 0;
}

Value jinja_method(const std::string& name, const Value& owner, const JinjaArguments& arguments) {
  check_jinja_method(name, arguments);
  if (owner.is(Kind::dict)) {
    if (name == "items") return pairs_of(owner);
    if (name == "keys") return Value::list(jinja_elements(owner));
    if (name == "get") {
      const Value& key = arguments.at(0);
      const Value* found = key.is(Kind::string) ? owner.find(key.text()) : nullptr;
      const Value* otherwise = arguments.find(1);
      return found ? *found : otherwise ? *otherwise : Value::none();
    }
    if (name == "values") {
      Value::List all;
      for (const auto& member : owner.members()) all.push_back(member.second);
      return Value::list(std::move(all));
    }
    lack_template("the method '" + name + "' of a dict");
  }
  const std::string& text = owner.text();
  if (name == "strip" || name == "lstrip" || name == "rstrip")
    return Value::string(
        stripped(text, set_of(arguments.find(0)), name[0] != 'r', name[0] != 'l'));
  if ((name == "startswith" || name == "endswith") && arguments.plain.size() == 1)
    return Value::boolean(starts_or_ends(text, arguments.at(0), name[0] == 's'));
  if (name == "split")
    return Value::list(split_text(text, set_of(arguments.find(0, "sep")),
                                  whole_of(arguments.find(1, "maxsplit"), -1)));
  if (name == "upper") return Value::string(upper_text(text));
  if (name == "lower") return Value::string(lower_text(text));
  if (name == "capitalize") return Value::string(capitalized(text));
  if (name == "replace")
    return Value::string(replaced_text(text, string_of(arguments.at(0), "replace"),
                                       string_of(arguments.at(1), "replace"),
                                       whole_of(arguments.find(2, "count"), -1)));
  if (name == "join") {
    for (const Value& part : jinja_elements(arguments.at(0))) string_of(part, "join");
    return Value::string(joined(arguments.at(0), text));
  }
  if ((name == "find" || name == "count") && arguments.plain.size() == 1) {
    const std::string& part = string_of(arguments.at(0), "find");
    const std::size_t at = text.find(part);
    if (name == "find")
      return Value::integer(at == text.npos ? -1 : count_of_characters(text.substr(0, at)));
    if (!part.empty()) return Value::integer(int64_t(split_text(text, &part, -1).size()) - 1);
  }
  lack_template("the method '" + name + "' of a string");
}

bool is_jinja_function(const std::string& name) {
  static const std::set<std::string> names = {"range",        "namespace", "dict",  "strftime_now",
                                              "raise_exception", "cycler", "joiner", "lipsum"};
  return names.count(name) > 0;
}

Value jinja_function(const std::string& name, const JinjaArguments& arguments) {
  if (name == "raise_exception") fail_template(text_of(arguments.at(0)));
  if (name == "strftime_now") return now(string_of(arguments.at(0), "strftime_now"));
  if (name == "namespace" || name == "dict") {
    Value::Dict members(arguments.named.begin(), arguments.named.end());
    if (!arguments.plain.empty()) lack_template("an argument of " + name + " without a name");
    if (name == "dict") return Value::dict(std::move(members));
    return Value::space(std::move(members));
  }
  if (name == "range") {
    int64_t first = 0, end = whole_of(&arguments.at(0), 0);
    const int64_t step = whole_of(arguments.find(2), 1);
    if (arguments.plain.size() > 1) first = end, end = whole_of(&arguments.at(1), 0);
    if (step == 0) fail_template("range: its step is 0");
    Value::List all;
    for (int64_t i = first; step > 0 ? i < end : i > end;) {
      all.push_back(Value::integer(i));
      if (int64_t(all.size()) > kLongestRange) fail_template("range: it is too long");
      if (__builtin_add_overflow(i, step, &i)) break;
    }
    return Value::list(std::move(all));
  }
  lack_template("the function '" + name + "'");
}

}  // namespace edgeqat
