// edgeqat-fuzz-text FOLDER [ROUNDS [SEED]]: mutated copies of the folder's tokenizer.json, and of
// small ones that hold every step. Each is an error of one line, or a tokenizer that encodes and
// decodes any bytes to valid UTF-8.

#include <array>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "error.h"
#include "expect.h"
#include "mutation.h"
#include "text_stream.h"
#include "tokenizer.h"
#include "utf8.h"

namespace {

using namespace edgeqat;

// A byte-pair model and a Unigram with bytes, each with many steps around it.
constexpr const char* kSmall[] = {
    R"json({"version": "1.0", "added_tokens": [
{"id": 12, "content": "<|end|>", "single_word": false, "lstrip": true, "rstrip": true,
 "normalized": false, "special": true},
{"id": 13, "content": "two words", "single_word": true, "normalized": true, "special": false}],
"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "NFC"},
 {"type": "NFD"}, {"type": "Lowercase"}, {"type": "Strip", "strip_left": true,
 "strip_right": true}, {"type": "Prepend", "prepend": "_"},
 {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
 {"type": "Replace", "pattern": {"String": " "}, "content": "_"}]},
"pre_tokenizer": {"type": "Sequence", "pretokenizers": [
 {"type": "Split", "behavior": "Isolated", "invert": false, "pattern": {"Regex":
 "(?i:'s|'t)|[^\\r\\n\\p{L}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}]++(?!\\S)|[\\n-\\r]*\\n|\\s+"}},
 {"type": "Digits", "individual_digits": true}, {"type": "Punctuation", "behavior": "Contiguous"},
 {"type": "Split", "behavior": "MergedWithNext", "invert": true, "pattern": {"String": "a"}},
 {"type": "ByteLevel", "add_prefix_space": true, "use_regex": true}]},
"post_processor": {"type": "Sequence", "processors": [{"type": "ByteLevel"},
 {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
 {"Sequence": {"id": "A", "type_id": 0}}], "special_tokens": {"<s>": {"id": "<s>", "ids": [0]}}}]},
"decoder": {"type": "ByteLevel"},
"model": {"type": "BPE", "unk_token": "<s>", "fuse_unk": true, "byte_fallback": true,
 "ignore_merges": true, "vocab": {"<s>": 0, "a": 1, "b": 2, "_": 3, "ab": 4, "_a": 5, "_ab": 6,
 "aba": 7, "\u0120": 8, "\u0120a": 9, "<0x0A>": 10, "\u00c3": 11},
 "merges": ["a b", "_ a", "_a b", ["ab", "a"], ["\u0120", "a"]]}})json",
    R"json({"added_tokens": [], "normalizer": null,
"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"},
 {"type": "Metaspace", "replacement": "_", "prepend_scheme": "first", "split": true}]},
"post_processor": {"type": "RobertaProcessing", "sep": ["</s>", 1], "cls": ["<s>", 0]},
"decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "_"},
 "content": " "}, {"type": "ByteFallback"}, {"type": "Metaspace", "replacement": "b",
 "prepend_scheme": "always"}, {"type": "Strip", "content": " ", "start": 1, "stop": 2},
 {"type": "Fuse"}]},
"model": {"type": "Unigram", "unk_id": 0, "byte_fallback": true, "vocab": [["<unk>", 0.0],
 ["_", -1.5], ["a", -2.0], ["_a", -2.25], ["b", -3.0], ["ab", -3.5], ["aba", -9.0],
 ["<0x0A>", 0.0], ["<0xC3>", 0.0], ["<0xA9>", 0.0]]}})json",
};
const std::vector<std::string> kWords = {
    "BPE", "Unigram", "WordPiece", "ByteLevel", "Metaspace", "Split", "Digits", "Punctuation",
    "Whitespace", "WhitespaceSplit", "Sequence", "NFC", "NFKD", "Strip", "Lowercase", "Prepend",
    "Replace", "Precompiled", "Fuse", "ByteFallback", "TemplateProcessing", "BertProcessing",
    "Isolated", "Removed", "MergedWithPrevious", "Contiguous", "never", "always", "Regex", "String",
    "\\\\p{L}*", "\\\\s+", "[^a-z]+|.", "(?i:'s)", "(?!\\\\S)", "a{1,1000}b", "(a|b)+",
    "[[:alpha:]]", "\\ud800", "\\u0000", "\\u2581", "\\ud83d\\ude00", "a", "b", "ab", "_",
    "<0x0A>", ""};
constexpr const char* kTexts[] = {
    "", "a b aba", "two words <|end|> 12345's\n\n", "\xc3\xa9\xc3", "\xff\xfe\x80",
    "e\xcc\x81 \xf0\x9f\x98\x80", "\xed\xa0\x80 \xe2\x82", "   \t\r\n  ",
    "\xea\xb0\x80\xe1\x86\xa8\xef\xac\x81 \xc4\xb0"};

std::string text_of(Random& random) {
  std::string text = pick(random, kTexts);
  for (int64_t more = random.below(4); more > 0; --more) text += pick(random, kTexts);
  for (int64_t noise = random.below(2) * random.below(40); noise > 0; --noise)
    text += char(random.below(256));
  return text;
}

// 1: it worked, 0: refused in one line, -1: neither.
int run(Random& random, const std::string& json) {
  try {
    Tokenizer tokenizer = Tokenizer::parse(json);
    const bool around = random.below(2);
    const std::vector<int32_t> ids = tokenizer.encode(text_of(random), around);
    std::vector<int32_t> given = ids;
    for (int64_t i = random.below(6); i > 0; --i) given.push_back(int32_t(random.below(20)) - 2);
    const bool special = random.below(2);
    const std::string text = tokenizer.decode(given.data(), given.size(), special);
    TextStream stream(tokenizer, special);
    std::string parts;
    for (const int32_t id : given) parts += stream.next(id);
    parts += stream.end();
    return is_utf8(text) && is_utf8(parts) ? 1 : -1;
  } catch (const Error& error) {
    const std::string line = error.what();
    return line.find(": ") == line.npos ? -1 : 0;
  }
}

std::string read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 2) {
    std::fprintf(stderr, "usage: edgeqat-fuzz-text FOLDER [ROUNDS [SEED]]\n");
    return 2;
  }
  const int64_t rounds = count > 2 ? std::atoll(arguments[2]) : 10000;
  Random random{count > 3 ? uint64_t(std::atoll(arguments[3])) : 1};
  const std::string own = read(std::string(arguments[1]) + "/tokenizer.json");
  for (const std::string& sound : {own, std::string(kSmall[0]), std::string(kSmall[1])}) {
    if (run(random, sound) == 1) continue;
    std::fprintf(stderr, "error: folder: a sound tokenizer.json is refused\n");
    return 2;
  }
  std::array<int64_t, 3> outcomes{};  // neither, refused, worked
  for (int64_t round = 0; round < rounds; ++round) {
    const int64_t which = random.below(20);
    std::string json = which ? kSmall[which % 2] : own;
    for (int64_t edits = 1 + random.below(3) / 2; edits > 0; --edits) mutate(random, json, kWords);
    const int outcome = run(random, json);
    ++outcomes[outcome + 1];
    if (outcome < 0) std::fprintf(stderr, "FAILED: round %lld\n", (long long)round);
  }
  std::printf("%lld tokenizers: %lld worked, %lld refused in one line, %lld neither\n",
              (long long)rounds, (long long)outcomes[2], (long long)outcomes[1],
              (long long)outcomes[0]);
  return outcomes[0] ? 1 : 0;
}
