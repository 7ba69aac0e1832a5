// The expressions of a template.

#include <algorithm>
#include <cmath>

#include "jinja_template.h"

namespace edgeqat {
namespace {

using Kind = JinjaExpression::Kind;
using Type = Value::Kind;

[[noreturn]] void overflow() { lack_template("a number beyond 64 bits"); }

int64_t floored(int64_t left, int64_t right) {
  if (right == 0) fail_template("a division by 0");
  if (right == -1) {
    int64_t negative = 0;
    if (__builtin_sub_overflow(int64_t(0), left, &negative)) overflow();
    return negative;
  }
  return left / right - (left % right != 0 && (left % right < 0) != (right < 0));
}

int64_t remainder_of(int64_t left, int64_t right) {
  if (right == 0) fail_template("a division by 0");
  if (right == -1) return 0;
  const int64_t rest = left % right;
  return rest != 0 && (rest < 0) != (right < 0) ? rest + right : rest;
}

Value whole_result(const std::string& sign, int64_t left, int64_t right) {
  int64_t out = 0;
  if (sign == "+" && __builtin_add_overflow(left, right, &out)) overflow();
  if (sign == "-" && __builtin_sub_overflow(left, right, &out)) overflow();
  if (sign == "*" && __builtin_mul_overflow(left, right, &out)) overflow();
  if (sign == "//") out = floored(left, right);
  if (sign == "%") out = remainder_of(left, right);
  return Value::integer(out);
}

Value real_result(const std::string& sign, double left, double right) {
  if (sign == "+") return Value::real(left + right);
  if (sign == "-") return Value::real(left - right);
  if (sign == "*") return Value::real(left * right);
  if (sign != "/") lack_template("the operator " + sign + " of numbers that are not whole");
  if (right == 0) fail_template("a division by 0");
  return Value::real(left / right);
}

int64_t bound_of(const Value& value, int64_t otherwise) {
  if (value.is(Type::none)) return otherwise;
  if (!value.is_whole()) fail_template("the bounds of a slice are whole numbers");
  return value.whole();
}

}  // namespace

Value JinjaRendering::named(const std::string& name) const {
  for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope)
    for (const auto& member : *scope)
      if (member.first == name) return member.second;
  return is_jinja_function(name) ? Value::method(name, Value()) : Value::undefined(name);
}

JinjaArguments JinjaRendering::arguments(const JinjaExpression& expression) {
  JinjaArguments found;
  for (std::size_t i = 1; i < expression.parts.size(); ++i)
    found.plain.push_back(evaluate(*expression.parts[i]));
  for (const auto& [name, part] : expression.named) found.named.emplace_back(name, evaluate(*part));
  return found;
}

Value JinjaRendering::evaluate(const JinjaExpression& e) {
  const auto part = [&](std::size_t i) { return evaluate(*e.parts[i]); };
  switch (e.kind) {
    case Kind::constant: return e.value;
    case Kind::name: return named(e.text);
    case Kind::attribute: return jinja_attribute(part(0), e.text);
    case Kind::item: return jinja_item(part(0), part(1));
    case Kind::slice: return sliced(e);
    case Kind::call: return called(e);
    case Kind::filter: return jinja_filter(e.text, part(0), arguments(e));
    case Kind::test: return Value::boolean(jinja_test(e.text, part(0), arguments(e)));
    case Kind::inverse: return Value::boolean(!part(0).truth());
    case Kind::compare: return compared(e);
    case Kind::sign: {
      const Value value = part(0);
      return computed(e.text, Value::integer(0), value);
    }
    case Kind::binary: {
      const Value left = part(0);
      return computed(e.text, left, part(1));
    }
    case Kind::both: {
      const Value left = part(0);
      return left.truth() ? part(1) : left;
    }
    case Kind::either: {
      const Value left = part(0);
      return left.truth() ? left : part(1);
    }
    case Kind::choice:
      if (part(1).truth()) return part(0);
      return e.parts[2] ? part(2) : Value::undefined("the other choice");
    case Kind::list:
    case Kind::tuple: {
      Value::List values;
      for (const JinjaPart& one : e.parts) values.push_back(evaluate(*one));
      if (e.kind == Kind::tuple) return Value::tuple(std::move(values));
      return Value::list(std::move(values));
    }
    case Kind::dict: break;
  }
  Value::Dict members;
  for (std::size_t i = 0; i < e.parts.size(); i += 2) {
    const Value key = part(i);
    if (!key.is(Type::string)) lack_template("a key that is no string");
    const auto same = std::find_if(members.begin(), members.end(),
                                   [&](const auto& member) { return member.first == key.text(); });
    if (same == members.end()) members.emplace_back(key.text(), part(i + 1));
    else same->second = part(i + 1);
  }
  return Value::dict(std::move(members));
}

Value JinjaRendering::called(const JinjaExpression& e) {
  const Value function = evaluate(*e.parts[0]);
  const JinjaArguments given = arguments(e);
  if (function.is(Type::undefined)) fail_template("'" + function.text() + "' is undefined");
  if (!function.is(Type::method))
    fail_template(std::string("a value that is ") + function.kind_name() + " cannot be called");
  if (function.has_owner()) return jinja_method(function.text(), function.values()[0], given);
  return jinja_function(function.text(), given);
}

Value JinjaRendering::compared(const JinjaExpression& e) {
  Value left = evaluate(*e.parts[0]);
  for (std::size_t i = 0; i < e.operators.size(); ++i) {
    const std::string& word = e.operators[i];
    const Value right = evaluate(*e.parts[i + 1]);
    bool holds = false;
    if (word == "==") holds = left.equals(right);
    else if (word == "!=") holds = !left.equals(right);
    else if (word == "in") holds = jinja_contains(right, left);
    else if (word == "not in") holds = !jinja_contains(right, left);
    else if (word == "<") holds = jinja_less(left, right);
    else if (word == ">") holds = jinja_less(right, left);
    else if (word == "<=") holds = !jinja_less(right, left);
    else holds = !jinja_less(left, right);
    if (!holds) return Value::boolean(false);
    left = right;
  }
  return Value::boolean(true);
}

Value JinjaRendering::computed(const std::string& sign, const Value& left, const Value& right) {
  if (sign == "~") return Value::string(left.shown() + right.shown());
  for (const Value* side : {&left, &right})
    if (side->is(Type::undefined)) fail_template("'" + side->text() + "' is undefined");
  if (left.is_number() && right.is_number()) {
    const bool whole = left.is_whole() && right.is_whole() && sign != "/";
    return whole ? whole_result(sign, left.whole(), right.whole())
                 : real_result(sign, left.number(), right.number());
  }
  if (sign == "+" && left.is(Type::string) && right.is(Type::string))
    return Value::string(left.text() + right.text());
  if (sign == "+" && left.is(Type::list) && right.is(Type::list) &&
      left.is_tuple() == right.is_tuple()) {
    Value::List all = left.values();
    all.insert(all.end(), right.values().begin(), right.values().end());
    return left.is_tuple() ? Value::tuple(std::move(all)) : Value::list(std::move(all));
  }
  if (sign != "+" && (left.is(Type::string) || right.is(Type::string)))
    lack_template("the operator " + sign + " of a string");
  fail_template(std::string("values that are ") + left.kind_name() + " and " + right.kind_name() +
                " have no " + sign);
}

Value JinjaRendering::sliced(const JinjaExpression& e) {
  const Value value = evaluate(*e.parts[0]);
  Value bounds[3] = {Value::none(), Value::none(), Value::none()};
  for (int i = 0; i < 3; ++i)
    if (e.parts[std::size_t(i) + 1]) bounds[i] = evaluate(*e.parts[std::size_t(i) + 1]);
  if (value.is(Type::undefined)) fail_template("'" + value.text() + "' is undefined");
  if (!value.is(Type::list) && !value.is(Type::string)) return Value::undefined("slice");
  const Value::List all = jinja_elements(value);
  const int64_t size = int64_t(all.size()), step = bound_of(bounds[2], 1);
  if (step == 0) fail_template("the step of a slice is 0");
  const int64_t least = step > 0 ? 0 : -1, most = step > 0 ? size : size - 1;
  const auto placed = [&](const Value& bound, int64_t otherwise) {
    int64_t at = bound_of(bound, otherwise);
    if (bound.is_whole() && at < 0) at += size;
    return std::clamp(at, least, most);
  };
  const int64_t end = placed(bounds[1], step > 0 ? size : -1);
  Value::List found;
  for (int64_t i = placed(bounds[0], step > 0 ? 0 : size - 1); step > 0 ? i < end : i > end;) {
    found.push_back(all[std::size_t(i)]);
    if (__builtin_add_overflow(i, step, &i)) break;
  }
  if (value.is_tuple()) return Value::tuple(std::move(found));
  if (value.is(Type::list)) return Value::list(std::move(found));
  std::string text;
  for (const Value& character : found) text += character.text();
  return Value::string(text);
}

}  // namespace edgeqat
