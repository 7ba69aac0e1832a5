// edgeqat-fuzz FOLDER [ROUNDS [SEED]]: opens mutated copies of a packed folder. Each is an error of
// one line, or a model that runs; never a crash, and with the sanitizers never a read out of
// bounds. (The loader checks structure, not hashes: nothing is stopped before it is parsed.)

#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cctype>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>
#include <vector>

#include "edgeqat.h"
#include "expect.h"

namespace {

using edgeqat::Random;

constexpr const char* kNumbers[] = {"0", "1", "-1", "3", "7", "31", "33", "64", "255", "65537",
                                    "16777217", "2147483648", "4294967295", "1099511627777",
                                    "9223372036854775807", "18446744073709551616", "1e308", "1e999",
                                    "0.5", "null", "true", "\"8\"", "[]", "{}"};
constexpr const char* kWords[] = {"U8", "F16", "F32", "BF16", "I64", "linear", "embedding",
                                  "dynamic", "static", "llama", "qwen2", "qwen3", "mistral",
                                  "gpt2", "w4a8kv4", "w2a4kv2", "w4a8kv1", "w99a8kv4", "w4",
                                  "silu", "gelu", "llama3", "yarn", "model.embed_tokens", "lm_head",
                                  "\\u0041", "\\ud83d\\ude00", "\\uD800", "\\q", "default",
                                  "edgeqat", "sliding_attention", ""};
constexpr const char* kRules[] = {"importance", "reversed", "random", "layers", "zipcache"};

template <std::size_t N>
std::string pick(Random& random, const char* const (&words)[N]) {
  return words[random.below(N)];
}

std::string read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

void write(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

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

void replace_token(Random& random, std::string& json, bool strings) {
  const auto found = tokens(json, strings);
  if (found.empty()) return;
  const auto [begin, end] = found[random.below(int64_t(found.size()))];
  std::string word = strings ? pick(random, kWords) : pick(random, kNumbers);
  if (random.below(4) == 0) {  // the value of another place
    const auto [from, to] = found[random.below(int64_t(found.size()))];
    word = json.substr(from, to - from);
  } else if (!strings && random.below(3) == 0) {  // the neighbour of a number
    const int64_t value = std::atoll(json.substr(begin, end - begin).c_str());
    word = std::to_string(random.below(2) ? value + 1 : value - 1);
  }
  json.replace(begin, end - begin, word);
}

void mutate(Random& random, std::string& json) {
  if (random.below(2)) return replace_token(random, json, random.below(4) == 0);
  for (int64_t edits = 1 + random.below(3); edits > 0 && !json.empty(); --edits) {
    const std::size_t at = random.below(int64_t(json.size()));
    switch (random.below(8)) {
      case 0: json[at] = char(random.below(256)); break;
      case 1: json.erase(at, 1 + random.below(40)); break;
      case 2: json.insert(at, json.substr(random.below(int64_t(json.size())), 40)); break;
      case 3: json.insert(at, std::string(1 + random.below(50), "[{\"\\,"[random.below(5)])); break;
      case 4: replace_token(random, json, true); break;
      default: replace_token(random, json, false);
    }
  }
}

// Tokens of two widths; the measured rules miss their thresholds then.
void adapt(Random& random, std::string& config) {
  const std::string section = "\"quant\": {";
  const std::size_t at = config.find(section);
  if (at == config.npos) return;
  const std::string share = random.below(4) ? "0.5" : pick(random, kNumbers);
  config.insert(at + section.size(), "\"adaptive\": {\"rule\": \"" + pick(random, kRules) +
                                         "\", \"share\": " + share + "}, ");
}

struct Folder {
  std::string config, header, data;
};

std::string weights_of(Random& random, const Folder& folder, bool mutated) {
  std::string header = folder.header, data = folder.data;
  uint64_t length = header.size();
  if (mutated) {
    const int64_t kind = random.below(6);
    if (kind > 0) mutate(random, header);
    header.resize((header.size() + 8 + 63) / 64 * 64 - 8, ' ');  // tiles stay on 64 bytes
    length = header.size();
    if (kind == 0) length = random.below(2) ? random.next() : uint64_t(random.below(1 << 20));
    if (kind == 1) data.resize(random.below(int64_t(data.size()) + 1));
  }
  std::string text(8, '\0');
  std::memcpy(text.data(), &length, 8);
  text += header + data;
  if (mutated && random.below(50) == 0) text.resize(random.below(64));
  return text;
}

// 1: it ran, 0: refused in one line, -1: neither.
int open(const std::string& place, bool half) {
  edgeqat_engine* engine = edgeqat_open(place.c_str(), 1, 0, half);
  if (!engine) {
    const std::string line = edgeqat_error();
    return line.empty() || line.find('\n') != line.npos || line.find(": ") == line.npos ? -1 : 0;
  }
  edgeqat_info info;
  edgeqat_get_info(engine, &info);
  const int32_t ids[] = {0, 1, 2};
  std::vector<float> logits(info.vocabulary);
  const int status = edgeqat_forward(engine, ids, 3, logits.data(), 0);
  const bool sound = status == EDGEQAT_OK || std::strlen(edgeqat_error()) > 0;
  edgeqat_close(engine);
  return sound ? 1 : -1;
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 2) {
    std::fprintf(stderr, "usage: edgeqat-fuzz FOLDER [ROUNDS [SEED]]\n");
    return 2;
  }
  const int64_t rounds = count > 2 ? std::atoll(arguments[2]) : 10000;
  Random random{count > 3 ? uint64_t(std::atoll(arguments[3])) : 1};
  const std::string source = arguments[1];
  const std::string weights = read(source + "/model.safetensors");
  Folder sound{read(source + "/config.json"), "", ""};
  uint64_t length = 0;
  if (weights.size() > 8) std::memcpy(&length, weights.data(), 8);
  if (length == 0 || length > weights.size() - 8) {
    std::fprintf(stderr, "error: folder: '%s' is not a packed folder\n", source.c_str());
    return 2;
  }
  sound.header = weights.substr(8, length);
  sound.data = weights.substr(8 + length);
  const char* base = std::getenv("TMPDIR");
  std::string place = std::string(base && *base ? base : "/tmp") + "/edgeqat-fuzz-XXXXXX";
  if (!mkdtemp(place.data())) return 2;
  std::array<int64_t, 3> outcomes{};  // neither, refused, ran
  for (int64_t round = 0; round < rounds; ++round) {
    const int64_t what = random.below(5);  // 0, 1: config; 2, 3: weights; 4: both
    std::string config = sound.config;
    if (random.below(4) == 0) adapt(random, config);
    if (what < 2 || what == 4) mutate(random, config);
    write(place + "/config.json", config);
    write(place + "/model.safetensors", weights_of(random, sound, what >= 2));
    const int outcome = open(place, random.below(8) == 0);
    ++outcomes[outcome + 1];
    if (outcome < 0)
      std::fprintf(stderr, "FAILED: round %lld: %s\n", (long long)round, edgeqat_error());
  }
  unlink((place + "/config.json").c_str());
  unlink((place + "/model.safetensors").c_str());
  rmdir(place.c_str());
  std::printf("%lld folders: %lld ran, %lld refused in one line, %lld neither\n",
              (long long)rounds, (long long)outcomes[2], (long long)outcomes[1],
              (long long)outcomes[0]);
  return outcomes[0] ? 1 : 0;
}
