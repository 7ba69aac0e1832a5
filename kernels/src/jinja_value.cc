#include "jinja_value.h"

#include <algorithm>

#include "error.h"

namespace edgeqat {
namespace {

constexpr uint32_t kDeepest = 64, kHeaviest = 1 << 20;

}  // namespace

void fail_template(const std::string& problem) { throw Error("chat template: " + problem); }

void lack_template(const std::string& construct) {
  throw Unsupported("chat template: " + construct.substr(0, 200) +
                    " is not supported by the engine; apply the template in Python");
}

void check_template_text(std::size_t size) {
  if (size > kMostTemplateText) fail_template("its text is too long; shorten the messages");
}

Value Value::undefined(const std::string& name) {
  Value made;
  made.text_ = std::make_shared<const std::string>(name);
  return made;
}

Value Value::none() {
  Value made;
  made.kind_ = Kind::none;
  return made;
}

Value Value::boolean(bool value) {
  Value made;
  made.kind_ = Kind::boolean;
  made.integer_ = value;
  return made;
}

Value Value::integer(int64_t value) {
  Value made;
  made.kind_ = Kind::integer;
  made.integer_ = value;
  return made;
}

Value Value::real(double value) {
  Value made;
  made.kind_ = Kind::real;
  made.real_ = value;
  return made;
}

Value Value::string(std::string text) {
  check_template_text(text.size());
  Value made;
  made.kind_ = Kind::string;
  made.text_ = std::make_shared<const std::string>(std::move(text));
  return made;
}

void Value::weigh(const Value& part) {
  if (part.is(Kind::space)) lack_template("a namespace inside another value");
  depth_ = std::max(depth_, part.depth_ + 1);
  weight_ += part.weight_ + uint32_t(part.text_->size() / 64);
  if (depth_ > kDeepest || weight_ > kHeaviest) fail_template("its values are too large");
}

Value Value::list(List values) {
  Value made;
  made.kind_ = Kind::list;
  for (const Value& value : values) made.weigh(value);
  made.list_ = std::make_shared<const List>(std::move(values));
  return made;
}

Value Value::tuple(List values) {
  Value made = list(std::move(values));
  made.tuple_ = true;
  return made;
}

Value Value::generator(List values) {
  Value made = list(std::move(values));
  made.kind_ = Kind::generator;
  return made;
}

Value Value::dict(Dict values) {
  Value made;
  made.kind_ = Kind::dict;
  for (const auto& member : values) made.weigh(member.second);
  made.dict_ = std::make_shared<Dict>(std::move(values));
  return made;
}

Value Value::space(Dict values) {
  Value made = dict(std::move(values));
  made.kind_ = Kind::space;
  made.depth_ = 0, made.weight_ = 1;
  return made;
}

Value Value::method(const std::string& name, const Value& owner) {
  if (owner.is(Kind::space)) lack_template("a method of a namespace");
  Value made = owner.is(Kind::undefined) ? Value() : list({owner});
  made.kind_ = Kind::method;
  made.text_ = std::make_shared<const std::string>(name);
  return made;
}

const Value* Value::find(std::string_view key) const {
  for (const auto& member : *dict_)
    if (member.first == key) return &member.second;
  return nullptr;
}

void Value::assign(const std::string& key, const Value& value) const {
  if (value.is(Kind::space)) lack_template("a namespace inside another value");
  for (auto& member : *dict_)
    if (member.first == key) {
      member.second = value;
      return;
    }
  if (dict_->size() > kHeaviest) fail_template("its values are too large");
  dict_->emplace_back(key, value);
}

bool Value::truth() const {
  switch (kind_) {
    case Kind::undefined:
    case Kind::none: return false;
    case Kind::boolean:
    case Kind::integer: return integer_ != 0;
    case Kind::real: return real_ != 0;
    case Kind::string: return !text_->empty();
    case Kind::list: return !list_->empty();
    case Kind::dict: return !dict_->empty();
    default: return true;
  }
}

bool Value::equals(const Value& other) const {
  if (is_number() && other.is_number()) {
    if (is_whole() && other.is_whole()) return integer_ == other.integer_;
    return number() == other.number();
  }
  if (kind_ != other.kind_) return false;
  if (is(Kind::string)) return *text_ == *other.text_;
  if (is(Kind::list))
    return tuple_ == other.tuple_ &&
           std::equal(list_->begin(), list_->end(), other.list_->begin(), other.list_->end(),
                      [](const Value& a, const Value& b) { return a.equals(b); });
  if (is(Kind::dict))
    return dict_->size() == other.dict_->size() &&
           std::all_of(dict_->begin(), dict_->end(), [&](const auto& member) {
             const Value* found = other.find(member.first);
             return found && member.second.equals(*found);
           });
  if (is(Kind::space)) return dict_ == other.dict_;
  if (is(Kind::generator)) return list_ == other.list_;
  return is(Kind::none) || is(Kind::undefined);
}

const char* Value::kind_name() const {
  static constexpr const char* kNames[] = {"undefined", "none",   "boolean", "number",
                                           "number",    "string", "list",    "dict",
                                           "namespace", "function", "generator"};
  return kNames[int(kind_)];
}

}  // namespace edgeqat
