// edgeqat-fuzz FOLDER [ROUNDS [SEED]]: opens mutated copies of a packed folder. Each is an error of
// one line, or a model that runs; never a crash, and with the sanitizers never a read out of
// bounds. (The loader checks structure, not hashes: nothing is stopped before it is parsed.)

#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>
#include <vector>

#include "edgeqat.h"
#include "expect.h"
#include "mutation.h"

namespace {

using edgeqat::kJsonNumbers;
using edgeqat::mutate;
using edgeqat::pick;
using edgeqat::Random;

const std::vector<std::string> kWords = {
    "U8", "F16", "F32", "BF16", "I64", "linear", "embedding", "dynamic", "static", "llama", "qwen2",
    "qwen3", "mistral", "gpt2", "gemma3_text", "granite", "olmo2", "olmo3", "exaone4", "ernie4_5",
    "arcee", "hunyuan_v1_dense", "phi3", "smollm3", "ministral3", "relu2", "gelu_pytorch_tanh",
    "longrope", "full_attention", "w4a8kv4", "w2a4kv2", "w4a8kv1", "w99a8kv4", "w4", "silu", "gelu",
    "llama3", "yarn", "model.embed_tokens", "lm_head", "\\u0041", "\\ud83d\\ude00", "\\uD800",
    "\\q", "default", "edgeqat", "sliding_attention", ""};
constexpr const char* kRules[] = {"importance", "reversed", "random", "layers", "zipcache"};

std::string read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

void write(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

// Tokens of two widths; the measured rules miss their thresholds then.
void adapt(Random& random, std::string& config) {
  const std::string section = "\"quant\": {";
  const std::size_t at = config.find(section);
  if (at == config.npos) return;
  const std::string share = random.below(4) ? "0.5" : pick(random, kJsonNumbers);
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
    if (kind > 0) mutate(random, header, kWords);
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
    if (what < 2 || what == 4) mutate(random, config, kWords);
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
