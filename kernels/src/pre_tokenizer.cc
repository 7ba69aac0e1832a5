#include "pre_tokenizer.h"

#include <map>
#include <utility>

#include "byte_characters.h"
#include "error.h"
#include "normalizer.h"
#include "unicode.h"
#include "utf8.h"

namespace edgeqat {
namespace {

constexpr std::size_t kMostSteps = 64;
constexpr char kWords[] =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

bool flag(const Json& json, const char* key, bool otherwise) {
  const Json* found = json.find(key);
  return found ? found->boolean() : otherwise;
}

// Cuts at a pattern.
struct Split : PreTokenizer::Step {
  Split(SplitPattern given, Cut cut, bool inverted)
      : pattern(std::move(given)), how(cut), invert(inverted) {}

  void apply(Pieces& pieces) const override {
    pieces.cut([&](std::string_view text, std::size_t from, std::size_t& begin,
                   std::size_t& end) { return pattern.find(text, from, begin, end); },
               how, invert);
  }

  SplitPattern pattern;
  Cut how;
  bool invert;
};

// Cuts at characters of a class, one by one.
struct Characters : PreTokenizer::Step {
  Characters(uint32_t class_bits, Cut cut) : bits(class_bits), how(cut) {}

  void apply(Pieces& pieces) const override {
    const Unicode& unicode = Unicode::tables();
    pieces.cut(
        [&](std::string_view text, std::size_t from, std::size_t& begin, std::size_t& end) {
          for (begin = end = from; end < text.size(); begin = end)
            if (unicode.class_of(next_code(text, end)) & bits) return true;
          return false;
        },
        how);
  }

  uint32_t bits;
  Cut how;
};

// Runs of word characters, and runs of what is neither a word nor a space.
struct Whitespace : PreTokenizer::Step {
  void apply(Pieces& pieces) const override {
    const Unicode& unicode = Unicode::tables();
    const auto kind = [&](std::string_view text, std::size_t& at) {
      const uint32_t bits = unicode.class_of(next_code(text, at));
      return bits & kJoins ? 1 : bits & kSpace ? 0 : 2;
    };
    pieces.cut(
        [&](std::string_view text, std::size_t from, std::size_t& begin, std::size_t& end) {
          for (begin = end = from; end < text.size(); begin = end) {
            const int first = kind(text, end);
            if (!first) continue;
            for (std::size_t next = end; next < text.size() && kind(text, next) == first;)
              end = next;
            return true;
          }
          return false;
        },
        Cut::removed, true);
  }
};

// Bytes as characters.
struct ByteLevel : PreTokenizer::Step {
  void apply(Pieces& pieces) const override {
    pieces.rewrite([&](std::string& out, std::string_view text, bool) {
      append_byte_characters(out, text);
    });
  }
};

// A space before every piece that has none.
struct SpaceBefore : PreTokenizer::Step {
  void apply(Pieces& pieces) const override {
    pieces.rewrite([](std::string& out, std::string_view text, bool) {
      if (text.substr(0, 1) != " ") out += ' ';
      out += text;
    });
  }
};

// SentencePiece's mark for spaces.
struct Metaspace : PreTokenizer::Step {
  Metaspace(std::string given, PrependScheme scheme, bool splits)
      : mark(std::move(given)), prepend(scheme) {
    if (splits) split = std::make_unique<Split>(SplitPattern::literal(mark), Cut::with_next, false);
  }

  void apply(Pieces& pieces) const override {
    pieces.rewrite([&](std::string& out, std::string_view text, bool first) {
      const bool wanted = prepend == PrependScheme::always ||
                          (prepend == PrependScheme::first && first);
      if (wanted && text.substr(0, 1) != " " && text.substr(0, mark.size()) != mark) out += mark;
      for (const char c : text) {
        if (c == ' ') out += mark;
        else out += c;
      }
    });
    if (split) split->apply(pieces);
  }

  std::string mark;
  PrependScheme prepend;
  std::unique_ptr<const Split> split;
};

Cut cut_of(const Json& json, const char* otherwise) {
  static const std::map<std::string, Cut> names = {
      {"Removed", Cut::removed},
      {"Isolated", Cut::isolated},
      {"MergedWithPrevious", Cut::with_previous},
      {"MergedWithNext", Cut::with_next},
      {"Contiguous", Cut::contiguous},
  };
  const Json* given = json.find("behavior");
  const auto found = names.find(given ? given->string() : otherwise);
  if (found == names.end()) throw Error("pre_tokenizer.behavior: it is unknown; update edgeqat");
  return found->second;
}

}  // namespace

PrependScheme prepend_scheme(const Json& json) {
  const Json* given = json.find("prepend_scheme");
  const Json* old = json.find("add_prefix_space");
  const std::string name = given ? given->string() : "always";
  if (old && !old->boolean()) return PrependScheme::never;
  if (name == "always") return PrependScheme::always;
  if (name == "first") return PrependScheme::first;
  if (name != "never") throw Error("Metaspace.prepend_scheme: it is unknown; update edgeqat");
  return PrependScheme::never;
}

void PreTokenizer::add(const Json& json) {
  const std::string type = json.at("type").string();
  const std::string where = "pre_tokenizer." + type.substr(0, 80);
  if (steps_.size() >= kMostSteps) throw Error("pre_tokenizer: it has too many steps");
  if (type == "Sequence") {
    for (const Json& step : json.at("pretokenizers").array()) add(step);
  } else if (type == "ByteLevel") {
    if (flag(json, "add_prefix_space", true)) steps_.push_back(std::make_unique<SpaceBefore>());
    if (flag(json, "use_regex", true))
      steps_.push_back(
          std::make_unique<Split>(SplitPattern(kWords, where), Cut::isolated, false));
    steps_.push_back(std::make_unique<ByteLevel>());
  } else if (type == "Split") {
    steps_.push_back(std::make_unique<Split>(pattern_of(json.at("pattern"), where),
                                             cut_of(json, ""), flag(json, "invert", false)));
  } else if (type == "Digits") {
    const bool single = flag(json, "individual_digits", false);
    steps_.push_back(
        std::make_unique<Characters>(kNumeric, single ? Cut::isolated : Cut::contiguous));
  } else if (type == "Punctuation") {
    steps_.push_back(std::make_unique<Characters>(kPunctuation, cut_of(json, "Isolated")));
  } else if (type == "Whitespace") {
    steps_.push_back(std::make_unique<Whitespace>());
  } else if (type == "WhitespaceSplit") {
    steps_.push_back(std::make_unique<Characters>(kSpace, Cut::removed));
  } else if (type == "Metaspace") {
    const std::string mark = json.at("replacement").string();
    std::size_t at = 0;
    if (mark.empty() || (next_code(mark, at), at != mark.size()))
      throw Error(where + ": its replacement is not one character; copy the folder again");
    steps_.push_back(
        std::make_unique<Metaspace>(mark, prepend_scheme(json), flag(json, "split", true)));
  } else {
    throw Unsupported("pre_tokenizer: '" + type.substr(0, 80) + "' is not supported by the engine; "
                      "encode in Python");
  }
}

}  // namespace edgeqat
