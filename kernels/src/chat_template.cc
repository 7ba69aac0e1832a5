#include "chat_template.h"

#include "error.h"
#include "json_reader.h"
#include "tensors.h"
#include "utf8.h"

namespace edgeqat {
namespace {

constexpr int64_t kLargestFile = 1 << 24;
constexpr std::size_t kLargestMessages = std::size_t(1) << 24;
constexpr const char* kTokens[] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                   "pad_token", "cls_token", "mask_token"};

Value read_value(JsonReader& reader) {
  const char first = reader.peek();
  if (first == '{') {
    Value::Dict members;
    reader.members([&](const std::string& key) {
      Value value = read_value(reader);
      for (auto& member : members)
        if (member.first == key) {
          member.second = std::move(value);
          return;
        }
      members.emplace_back(key, std::move(value));
    });
    return Value::dict(std::move(members));
  }
  if (first == '[') {
    Value::List values;
    reader.elements([&] { values.push_back(read_value(reader)); });
    return Value::list(std::move(values));
  }
  const Json json = reader.value("messages");
  switch (json.kind()) {
    case Json::Kind::null: return Value::none();
    case Json::Kind::boolean: return Value::boolean(json.boolean());
    case Json::Kind::string: return Value::string(json.string());
    default: break;
  }
  if (json.fits()) return Value::integer(json.integer(INT64_MIN, INT64_MAX));
  if (json.is_whole()) return Value::method("a number beyond 64 bits", Value());  // has no text
  return Value::real(json.number());
}

// A special token: its text, or {"content": its text}.
const Value* text_of(const Value& token) {
  if (token.is(Value::Kind::string)) return &token;
  const Value* content = token.is(Value::Kind::dict) ? token.find("content") : nullptr;
  return content && content->is(Value::Kind::string) ? content : nullptr;
}

// The template itself, or that with the name "default".
std::string source_of(const Value& found) {
  if (found.is(Value::Kind::string)) return found.text();
  for (const Value& one : jinja_elements(found)) {
    const Value* name = one.is(Value::Kind::dict) ? one.find("name") : nullptr;
    const Value* source = name ? one.find("template") : nullptr;
    if (source && source->is(Value::Kind::string) && name->equals(Value::string("default")))
      return source->text();
  }
  lack_template("a list of templates without 'default'");
}

}  // namespace

Value value_of_json(std::string_view text, const std::string& what) {
  JsonReader reader(text, what);
  Value value = read_value(reader);
  reader.finish();
  return value;
}

ChatTemplate ChatTemplate::open(const std::string& folder) {
  const std::string settings = folder + "/tokenizer_config.json";
  const std::string own = folder + "/chat_template.jinja";
  Value config = Value::dict({});
  if (is_file(settings))
    config = value_of_json(sound_utf8(read_text(settings, kLargestFile)), "tokenizer_config.json");
  if (!config.is(Value::Kind::dict))
    throw Error("tokenizer_config.json: it is no object; copy the folder again");
  Value::Dict tokens;
  for (const char* name : kTokens) {
    const Value* token = config.find(name);
    if (token && text_of(*token)) tokens.emplace_back(name, *text_of(*token));
  }
  const Value* inside = config.find("chat_template");
  if (is_file(own)) return {sound_utf8(read_text(own, kLargestFile)), std::move(tokens)};
  if (!inside || inside->is(Value::Kind::none))
    throw Error("chat template: '" + folder + "' has none; name a chat model");
  return {source_of(*inside), std::move(tokens)};
}

std::string ChatTemplate::apply(std::string_view messages, bool add_generation_prompt) const {
  if (messages.size() > kLargestMessages) fail_template("the messages are too long");
  Value::Dict context = tokens_;
  context.emplace_back("messages", value_of_json(sound_utf8(messages), "messages"));
  context.emplace_back("tools", Value::none());
  context.emplace_back("documents", Value::none());
  context.emplace_back("add_generation_prompt", Value::boolean(add_generation_prompt));
  return template_.render(context);
}

}  // namespace edgeqat
