#include "token_decoder.h"

#include <charconv>
#include <utility>

#include "byte_characters.h"
#include "error.h"
#include "normalizer.h"
#include "pre_tokenizer.h"
#include "utf8.h"

namespace edgeqat {
namespace {

using Tokens = TokenDecoder::Tokens;

constexpr std::size_t kMostSteps = 64;
constexpr int64_t kMostStripped = 1 << 20;
constexpr char kBroken[] = "\xef\xbf\xbd";  // U+FFFD

void fuse(Tokens& tokens) {
  std::string all;
  for (const std::string& token : tokens) all += token;
  tokens.assign(1, std::move(all));
}

// Characters of GPT-2's alphabet back to bytes; a token with others stays as it is.
struct ByteLevel : TokenDecoder::Step {
  void apply(Tokens& tokens) const override {
    std::string all, bytes;
    for (const std::string& token : tokens) {
      bytes.clear();
      bool mapped = true;
      for (std::size_t at = 0; mapped && at < token.size();) {
        const int byte = byte_of_character(next_code(token, at));
        mapped = byte >= 0;
        bytes += char(byte);
      }
      all += mapped ? bytes : token;
    }
    tokens.assign(1, sound_utf8(all));
  }
};

// Runs of <0xNN> to text; where their bytes are none, to one U+FFFD each.
struct ByteFallback : TokenDecoder::Step {
  void apply(Tokens& tokens) const override {
    Tokens made;
    std::string bytes;
    const auto finish = [&] {
      if (bytes.empty()) return;
      if (is_utf8(bytes)) made.push_back(bytes);
      else made.insert(made.end(), bytes.size(), kBroken);
      bytes.clear();
    };
    for (std::string& token : tokens) {
      const int byte = byte_of(token);
      if (byte >= 0) {
        bytes += char(byte);
        continue;
      }
      finish();
      made.push_back(std::move(token));
    }
    finish();
    tokens.swap(made);
  }

  static int byte_of(const std::string& token) {
    if (token.size() != 6 || token.compare(0, 3, "<0x") || token[5] != '>') return -1;
    const char* begin = token.data() + 3 + (token[3] == '+');
    int value = 0;
    const auto read = std::from_chars(begin, token.data() + 5, value, 16);
    return read.ec == std::errc() && read.ptr == token.data() + 5 && value >= 0 ? value : -1;
  }
};

struct Metaspace : TokenDecoder::Step {
  Metaspace(std::string given, PrependScheme scheme) : mark(std::move(given)), prepend(scheme) {}

  void apply(Tokens& tokens) const override {
    const SplitPattern pattern = SplitPattern::literal(mark);
    for (std::size_t i = 0; i < tokens.size(); ++i)
      tokens[i] = replaced(tokens[i], pattern, i || prepend == PrependScheme::never ? " " : "");
  }

  std::string mark;
  PrependScheme prepend;
};

struct Fuse : TokenDecoder::Step {
  void apply(Tokens& tokens) const override { fuse(tokens); }
};

// Takes a character off, at most so many times.
struct Strip : TokenDecoder::Step {
  Strip(std::string given, int64_t at_start, int64_t at_end)
      : content(std::move(given)), start(at_start), stop(at_end) {}

  void apply(Tokens& tokens) const override {
    for (std::string& token : tokens) {
      std::size_t begin = 0, end = token.size();
      for (int64_t i = 0; i < start && token.compare(begin, content.size(), content) == 0; ++i)
        begin += content.size();
      for (int64_t i = 0; i < stop && end >= begin + content.size() &&
                          token.compare(end - content.size(), content.size(), content) == 0;
           ++i)
        end -= content.size();
      token = token.substr(begin, end - begin);
    }
  }

  std::string content;
  int64_t start, stop;
};

struct Replace : TokenDecoder::Step {
  Replace(SplitPattern given, std::string text)
      : pattern(std::move(given)), content(std::move(text)) {}

  void apply(Tokens& tokens) const override {
    for (std::string& token : tokens) token = replaced(token, pattern, content);
  }

  SplitPattern pattern;
  std::string content;
};

}  // namespace

void TokenDecoder::add(const Json& json) {
  const std::string type = json.at("type").string();
  if (steps_.size() >= kMostSteps) throw Error("decoder: it has too many steps");
  if (type == "Sequence") {
    for (const Json& step : json.at("decoders").array()) add(step);
  } else if (type == "ByteLevel") {
    steps_.push_back(std::make_unique<ByteLevel>());
  } else if (type == "ByteFallback") {
    steps_.push_back(std::make_unique<ByteFallback>());
  } else if (type == "Metaspace") {
    const std::string& mark = json.at("replacement").string();
    if (mark.empty()) throw Error("decoder.replacement: it is empty; copy the folder again");
    steps_.push_back(std::make_unique<Metaspace>(mark, prepend_scheme(json)));
  } else if (type == "Fuse") {
    steps_.push_back(std::make_unique<Fuse>());
  } else if (type == "Strip") {
    const std::string& content = json.at("content").string();
    if (content.empty()) throw Error("decoder.content: it is empty; copy the folder again");
    steps_.push_back(std::make_unique<Strip>(content, json.at("start").integer(0, kMostStripped),
                                             json.at("stop").integer(0, kMostStripped)));
  } else if (type == "Replace") {
    steps_.push_back(std::make_unique<Replace>(pattern_of(json.at("pattern"), "decoder.Replace"),
                                               json.at("content").string()));
  } else {
    throw Unsupported("decoder: '" + type.substr(0, 80) + "' is not supported by the engine; "
                      "decode in Python");
  }
}

std::string TokenDecoder::text(Tokens tokens) const {
  if (!joins_)
    for (std::size_t i = 1; i < tokens.size(); ++i) tokens[i].insert(0, 1, ' ');
  for (const auto& step : steps_) step->apply(tokens);
  fuse(tokens);
  return std::move(tokens[0]);
}

}  // namespace edgeqat
