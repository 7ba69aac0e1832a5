#include "mutation.h"

#include <cctype>
#include <cstdlib>
#include <cstring>
#include <utility>

namespace edgeqat {
namespace {

// First and last byte of every token of a kind: numbers (and true, false, null), or strings.
std::vector<std::pair<std::size_t, std::size_t>> tokens(const std::string& json, bool strings) {
  std::vector<std::pair<std::size_t, std::size_t>> found;
  for (std::size_t i = 0; i < json.size(); ++i) {
    const std::size_t begin = i;
    if (json[i] == '"') {
      for (++i; i < json.size() && json[i] != '"'; ++i) i += json[i] == '\\';
      if (strings) found.emplace_back(begin + 1, i);
    } else if (std::isalnum(static_cast<unsigned char>(json[i])) || json[i] == '-') {
      while (i < json.size() && (std::isalnum(static_cast<unsigned char>(json[i])) ||
                                 std::strchr("+-.", json[i])))
        ++i;
      if (!strings) found.emplace_back(begin, i);
      --i;
    }
  }
  return found;
}

void replace_token(Random& random, std::string& json, bool strings,
                   const std::vector<std::string>& words) {
  const auto found = tokens(json, strings);
  if (found.empty()) return;
  const auto [begin, end] = found[random.below(int64_t(found.size()))];
  std::string word = strings ? words[random.below(int64_t(words.size()))]
                             : pick(random, kJsonNumbers);
  if (random.below(4) == 0) {  // the value of another place
    const auto [from, to] = found[random.below(int64_t(found.size()))];
    word = json.substr(from, to - from);
  } else if (!strings && random.below(3) == 0) {  // the neighbour of a number
    const uint64_t value = uint64_t(std::atoll(json.substr(begin, end - begin).c_str()));
    word = std::to_string(int64_t(random.below(2) ? value + 1 : value - 1));  // it may wrap
  }
  json.replace(begin, end - begin, word);
}

}  // namespace

void mutate(Random& random, std::string& json, const std::vector<std::string>& words) {
  if (random.below(2)) return replace_token(random, json, random.below(4) == 0, words);
  for (int64_t edits = 1 + random.below(3); edits > 0 && !json.empty(); --edits) {
    const std::size_t at = random.below(int64_t(json.size()));
    switch (random.below(8)) {
      case 0: json[at] = char(random.below(256)); break;
      case 1: json.erase(at, 1 + random.below(40)); break;
      case 2: json.insert(at, json.substr(random.below(int64_t(json.size())), 40)); break;
      case 3: {
        const char repeated = "[{\"\\,"[random.below(5)];
        json.insert(at, std::string(1 + random.below(50), repeated));
        break;
      }
      case 4: replace_token(random, json, true, words); break;
      default: replace_token(random, json, false, words);
    }
  }
}

}  // namespace edgeqat
