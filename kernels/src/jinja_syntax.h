// What a template consists of.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "jinja_value.h"

namespace edgeqat {

struct JinjaExpression;
using JinjaPart = std::unique_ptr<const JinjaExpression>;

struct JinjaExpression {
  enum class Kind {
    constant,   // value
    name,       // text
    list,       // parts
    tuple,      // parts
    dict,       // parts: key, value, key, value ...
    attribute,  // parts[0].text
    item,       // parts[0][parts[1]]
    slice,      // parts[0][parts[1]:parts[2]:parts[3]], each may be absent
    call,       // parts[0](parts[1], ...)
    filter,     // parts[0] | text(parts[1], ...)
    test,       // parts[0] is text(parts[1], ...)
    sign,       // text parts[0]
    inverse,    // not parts[0]
    binary,     // parts[0] text parts[1]
    compare,    // parts[0] operators[0] parts[1] operators[1] parts[2] ...
    both,       // parts[0] and parts[1]
    either,     // parts[0] or parts[1]
    choice      // parts[0] if parts[1] else parts[2], which may be absent
  };
  Kind kind = Kind::constant;
  std::string text;
  Value value;
  std::vector<JinjaPart> parts;
  std::vector<std::pair<std::string, JinjaPart>> named;  // arguments by name
  std::vector<std::string> operators;
  int depth = 1;
};

struct JinjaStatement {
  enum class Kind { text, output, condition, loop, assign, block_assign, leave, skip };
  struct Branch {
    JinjaPart condition;  // absent: else
    std::vector<JinjaStatement> body;
  };
  Kind kind = Kind::text;
  std::string text;
  JinjaPart value;                   // to output, to assign, to loop over
  JinjaPart filter;                  // of a loop: which values
  std::vector<std::string> targets;  // names to assign
  std::string space;                 // of the namespace whose member is assigned
  std::vector<Branch> branches;      // of a condition; of a loop: its body, and its else
};

using JinjaBody = std::vector<JinjaStatement>;

// Reads a template; an Unsupported names a construct that the engine lacks.
JinjaBody parse_jinja(std::string_view source);

}  // namespace edgeqat
