#include "normalizer.h"

#include <utility>

#include "byte_characters.h"
#include "error.h"
#include "unicode.h"
#include "utf8.h"

namespace edgeqat {
namespace {

constexpr std::size_t kMostSteps = 64;

struct NormalForm : Normalizer::Step {
  NormalForm(bool compatible_form, bool composed_form)
      : compatible(compatible_form), composed(composed_form) {}

  std::string apply(std::string text, bool&) const override {
    return Unicode::tables().normal_form(text, compatible, composed);
  }

  bool compatible, composed;
};

struct Lowercase : Normalizer::Step {
  std::string apply(std::string text, bool&) const override {
    std::string out;
    for (std::size_t at = 0; at < text.size();)
      Unicode::tables().append_lower(out, next_code(text, at));
    return out;
  }
};

struct Prepend : Normalizer::Step {
  explicit Prepend(std::string given) : start(std::move(given)) {}

  std::string apply(std::string text, bool&) const override {
    return text.empty() ? text : start + text;
  }

  std::string start;
};

struct Replace : Normalizer::Step {
  Replace(SplitPattern given, std::string text)
      : pattern(std::move(given)), content(std::move(text)) {}

  std::string apply(std::string text, bool& first) const override {
    std::size_t begin = 0, end = 0;
    if (content.empty() && pattern.find(text, 0, begin, end)) first = first && begin > 0;
    return replaced(text, pattern, content);
  }

  SplitPattern pattern;
  std::string content;
};

struct Strip : Normalizer::Step {
  Strip(bool at_left, bool at_right) : left(at_left), right(at_right) {}

  std::string apply(std::string text, bool& first) const override {
    const Unicode& unicode = Unicode::tables();
    std::size_t begin = text.size(), end = 0;  // of what is no space
    for (std::size_t at = 0; at < text.size();) {
      const std::size_t from = at;
      if (unicode.class_of(next_code(text, at)) & kSpace) continue;
      begin = std::min(begin, from);
      end = at;
    }
    if (!left) begin = 0;
    if (!right || end < begin) end = std::max(begin, right ? begin : text.size());
    first = first && begin == 0;
    return text.substr(begin, end - begin);
  }

  bool left, right;
};

struct ByteCharacters : Normalizer::Step {
  std::string apply(std::string text, bool&) const override {
    std::string out;
    append_byte_characters(out, text);
    return out;
  }
};

}  // namespace

SplitPattern pattern_of(const Json& json, const std::string& where) {
  if (const Json* text = json.find("String")) {
    if (text->string().empty())
      throw Error(where + ": its pattern is empty; copy the folder again");
    return SplitPattern::literal(text->string());
  }
  return SplitPattern(json.at("Regex").string(), where);
}

std::string replaced(const std::string& text, const SplitPattern& pattern,
                     const std::string& content) {
  std::string out;
  std::size_t at = 0, begin = 0, end = 0;
  while (at < text.size() && pattern.find(text, at, begin, end)) {
    out.append(text, at, begin - at).append(content);
    at = end;
  }
  return out.append(text, at, text.npos);
}

Normalizer::Normalizer(const Json& json) { add(json); }

void Normalizer::add(const Json& json) {
  const std::string type = json.at("type").string();
  if (steps_.size() >= kMostSteps) throw Error("normalizer: it has too many steps");
  if (type == "Sequence") {
    for (const Json& step : json.at("normalizers").array()) add(step);
  } else if (type == "NFC" || type == "NFD" || type == "NFKC" || type == "NFKD") {
    steps_.push_back(std::make_unique<NormalForm>(type[2] == 'K', type.back() == 'C'));
  } else if (type == "Lowercase") {
    steps_.push_back(std::make_unique<Lowercase>());
  } else if (type == "Prepend") {
    steps_.push_back(std::make_unique<Prepend>(json.at("prepend").string()));
  } else if (type == "Replace") {
    steps_.push_back(std::make_unique<Replace>(pattern_of(json.at("pattern"), "normalizer.Replace"),
                                               json.at("content").string()));
  } else if (type == "Strip") {
    steps_.push_back(std::make_unique<Strip>(json.at("strip_left").boolean(),
                                             json.at("strip_right").boolean()));
  } else if (type == "ByteLevel") {
    steps_.push_back(std::make_unique<ByteCharacters>());
  } else {
    throw Unsupported("normalizer: '" + type.substr(0, 80) + "' is not supported by the engine; "
                      "encode in Python");
  }
}

std::string Normalizer::apply(std::string text, bool& first) const {
  for (const auto& step : steps_) text = step->apply(std::move(text), first);
  return text;
}

}  // namespace edgeqat
