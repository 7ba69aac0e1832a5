// The arguments that filters and methods take. Jinja refuses others, so they are an error here too.

#include <algorithm>
#include <map>

#include "jinja_builtins.h"

namespace edgeqat {
namespace {

struct Signature {
  std::size_t most;                // arguments by place
  std::vector<std::string> names;  // arguments by name
};
using Signatures = std::map<std::string, Signature>;

void check(const Signatures& all, const std::string& name, const JinjaArguments& arguments) {
  const auto found = all.find(name);
  if (found == all.end()) return;
  const Signature& known = found->second;
  if (arguments.plain.size() > known.most) fail_template(name + ": it has too many arguments");
  for (const auto& argument : arguments.named)
    if (std::find(known.names.begin(), known.names.end(), argument.first) == known.names.end())
      fail_template(name + ": it has no argument '" + argument.first.substr(0, 80) + "'");
}

}  // namespace

void check_jinja_filter(const std::string& name, const JinjaArguments& arguments) {
  static const Signatures known = {
      {"trim", {1, {"chars"}}},
      {"length", {0, {}}},
      {"count", {0, {}}},
      {"upper", {0, {}}},
      {"lower", {0, {}}},
      {"capitalize", {0, {}}},
      {"title", {0, {}}},
      {"string", {0, {}}},
      {"safe", {0, {}}},
      {"tojson", {4, {"ensure_ascii", "indent", "separators", "sort_keys"}}},
      {"join", {2, {"d", "attribute"}}},
      {"default", {2, {"default_value", "boolean"}}},
      {"d", {2, {"default_value", "boolean"}}},
      {"first", {0, {}}},
      {"last", {0, {}}},
      {"list", {0, {}}},
      {"reverse", {0, {}}},
      {"items", {0, {}}},
      {"replace", {3, {"old", "new", "count"}}},
      {"int", {1, {"default"}}},
      {"float", {1, {"default"}}},
      {"abs", {0, {}}},
      {"select", {9, {}}},
      {"reject", {9, {}}},
      {"selectattr", {9, {}}},
      {"rejectattr", {9, {}}},
  };
  check(known, name, arguments);
  const bool by_attribute = arguments.find(~std::size_t(0), "attribute");
  if (name == "map" && by_attribute)
    check({{"map", {0, {"attribute", "default"}}}}, name, arguments);
  else if (name == "map" && !arguments.named.empty())
    lack_template("an argument with a name for the filter of 'map'");
}

void check_jinja_method(const std::string& name, const JinjaArguments& arguments) {
  static const Signatures known = {
      {"items", {0, {}}},  {"keys", {0, {}}},       {"values", {0, {}}},
      {"upper", {0, {}}},  {"lower", {0, {}}},      {"capitalize", {0, {}}},
      {"strip", {1, {}}},  {"lstrip", {1, {}}},     {"rstrip", {1, {}}},
      {"join", {1, {}}},   {"get", {2, {}}},        {"split", {2, {"sep", "maxsplit"}}},
      {"replace", {3, {}}}, {"startswith", {3, {}}}, {"endswith", {3, {}}},
      {"find", {3, {}}},   {"count", {3, {}}},
  };
  check(known, name, arguments);
}

}  // namespace edgeqat
