// edgeqat-run: continues a text and measures, on a machine that has nothing else.
//
//   edgeqat-run FOLDER --prompt "Once upon a time" --tokens 32
//   edgeqat-run FOLDER --chat
//   edgeqat-run FOLDER --ids 1,15,20
//   edgeqat-run FOLDER --bench            (or --shape tinyllama-1.1b --bench)

#include <sys/resource.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "conversation.h"
#include "edgeqat.h"
#include "generation.h"

namespace {

using namespace edgeqat_run;

constexpr char kUsage[] =
    "usage: edgeqat-run FOLDER | --shape NAME [--scheme w4a8kv4]\n"
    "                   [--prompt TEXT | --ids 1,2,3 | --chat] [--tokens N]\n"
    "                   [--temperature T] [--top-k K] [--top-p P] [--seed S]\n"
    "                   [--threads N] [--context N] [--fp16] [--no-lookup]\n"
    "                   [--bench [--prompt N] [--depth N] [--repeat N] [--json]]\n"
    "FOLDER is what `edgeqat quantize` wrote. --chat answers lines from stdin.\n"
    "--no-lookup guesses no tokens by what stands in the text; the answer is the same.\n"
    "NAME is llama-8m, llama-58m, smollm-135m or tinyllama-1.1b.\n";

constexpr int64_t kMostThreads = 1024, kBenchPrompt = 128, kTokens = 64;

struct Options {
  std::string folder, shape, prompt, scheme = "w4a8kv4";
  std::vector<int32_t> ids;
  int64_t tokens = kTokens, context = 0, depth = 0, repeat = 5, top_k = 0;
  float temperature = 0, top_p = 1;
  uint64_t seed = 0;
  int threads = 0;
  bool half = false, lookup = true, bench = false, json = false, chat = false;
  bool counted = false;  // --tokens was given
};

double number(const std::string& flag, const char* text) {
  char* end = nullptr;
  const double value = text ? std::strtod(text, &end) : 0;
  if (!text || end == text || *end || !(value >= 0) || value > 1e15)
    stop(2, flag + ": '" + (text ? text : "") + "' is not a number from 0");
  return value;
}

// A whole number from `least` to `most`.
int64_t whole_number(const std::string& flag, const char* text, int64_t least, int64_t most) {
  int64_t value = 0;
  const char* end = text ? text + std::strlen(text) : nullptr;
  const auto [stopped, error] = text ? std::from_chars(text, end, value) : std::from_chars_result{};
  if (!text || error != std::errc() || stopped != end || value < least || value > most)
    stop(2, flag + ": '" + (text ? text : "") + "' is no whole number from " +
                std::to_string(least) + " to " + std::to_string(most));
  return value;
}

std::vector<int32_t> list_of(const std::string& text) {
  std::vector<int32_t> ids;
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t end = std::min(text.find(',', begin), text.size());
    const std::string id = text.substr(begin, end - begin);
    ids.push_back(int32_t(whole_number("--ids", id.c_str(), 0, INT32_MAX)));
    begin = end + 1;
  }
  return ids;
}

Options parse(int count, char** arguments) {
  Options o;
  for (int i = 1; i < count; ++i) {
    const std::string flag = arguments[i];
    const auto next = [&] { return i + 1 < count ? arguments[++i] : nullptr; };
    const auto whole = [&](int64_t least = 0, int64_t most = INT32_MAX) {
      return whole_number(flag, next(), least, most);
    };
    if (flag == "--help") std::printf("%s", kUsage), std::exit(0);
    else if (flag == "--shape" && i + 1 < count) o.shape = next();
    else if (flag == "--scheme" && i + 1 < count) o.scheme = next();
    else if (flag == "--ids" && i + 1 < count) o.ids = list_of(next());
    else if (flag == "--tokens") o.tokens = whole(), o.counted = true;
    else if (flag == "--temperature") o.temperature = float(number(flag, next()));
    else if (flag == "--top-k") o.top_k = whole();
    else if (flag == "--top-p") o.top_p = float(number(flag, next()));
    else if (flag == "--seed") o.seed = uint64_t(whole(0, INT64_MAX));
    else if (flag == "--threads") o.threads = int(whole(0, kMostThreads));
    else if (flag == "--context") o.context = whole();
    else if (flag == "--prompt" && i + 1 < count) o.prompt = next();
    else if (flag == "--depth") o.depth = whole();
    else if (flag == "--repeat") o.repeat = whole(1, 1000);
    else if (flag == "--fp16") o.half = true;
    else if (flag == "--no-lookup") o.lookup = false;
    else if (flag == "--bench") o.bench = true;
    else if (flag == "--json") o.json = true;
    else if (flag == "--chat") o.chat = true;
    else if (flag[0] != '-' && o.folder.empty()) o.folder = flag;
    else stop(2, flag + ": unknown, or its value is missing; see --help");
  }
  if (o.folder.empty() == o.shape.empty()) stop(2, "folder: name a packed folder or --shape");
  return o;
}

double seconds() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double>(now).count();
}

struct Speed {
  std::string test;
  double mean = 0, sd = 0;  // tokens/s

  Speed(const std::string& name, const std::vector<double>& speeds) : test(name) {
    double square = 0;
    for (double speed : speeds) mean += speed / double(speeds.size());
    for (double speed : speeds) square += (speed - mean) * (speed - mean);
    if (speeds.size() > 1) sd = std::sqrt(square / double(speeds.size() - 1));
  }
};

// Refuses what would run out of the context on the way.
void check_fits(const std::string& what, int64_t tokens, const edgeqat_info& info) {
  if (tokens > info.context)
    stop(2, what + ": " + std::to_string(tokens) + " tokens do not fit a context of " +
                std::to_string(info.context) + "; lower them or raise --context");
}

void generate(edgeqat_engine* engine, const Options& o, const edgeqat_info& info) {
  if (o.chat) {
    if (o.folder.empty()) stop(2, "--chat: a shape has no chat template; name a folder");
    Generation generation(engine, o.temperature, o.top_k, o.top_p, o.seed, o.lookup);
    return converse(engine, o.folder, generation, o.counted ? o.tokens : 0);
  }
  if (o.ids.empty() && o.prompt.empty())
    stop(2, "prompt: give --prompt TEXT, --ids, --chat or --bench");
  if (!o.ids.empty() && !o.prompt.empty()) stop(2, "prompt: give --prompt or --ids, not both");
  Tokenizer tokenizer;
  std::vector<int32_t> ids = o.ids;
  if (ids.empty()) {
    if (o.folder.empty()) stop(2, "--prompt: a shape has no tokenizer; give --ids");
    tokenizer.open(o.folder);
    ids = tokenizer.encode(o.prompt, true);
    if (ids.empty()) stop(2, "--prompt: it holds no tokens; give at least one character");
  }
  check_fits("the prompt and --tokens", int64_t(ids.size()) + std::max<int64_t>(o.tokens - 1, 0),
             info);
  Generation generation(engine, o.temperature, o.top_k, o.top_p, o.seed, o.lookup);
  const char* comma = "";
  generation.run({}, ids, o.tokens, [&](int32_t id) {
    if (o.ids.empty()) {
      tokenizer.show(id);
    } else {
      std::printf("%s%d", comma, id);
      std::fflush(stdout);
      comma = ",";
    }
  });
  if (o.ids.empty()) tokenizer.show_rest();
  std::printf("\n");
}

double peak_bytes() {
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  return double(usage.ru_maxrss) * 1e3;
}

void show(const std::vector<Speed>& speeds, const edgeqat_info& info, double read) {
  std::printf("isa %s, threads %d, matrices %.1f MB, read loop %.1f GB/s\n", info.isa,
              info.threads, double(info.matrix_bytes) / 1e6, read / 1e9);
  for (const Speed& speed : speeds)
    std::printf("%-12s %10.2f tokens/s  sd %8.2f\n", speed.test.c_str(), speed.mean, speed.sd);
  std::printf("peak RSS %.1f MB\n", peak_bytes() / 1e6);
}

// Rows with the names that `edgeqat bench --json` gives them.
void show_json(const std::vector<Speed>& speeds, const edgeqat_info& info, double read) {
  const char* comma = "[";
  for (const Speed& speed : speeds) {
    std::printf("%s{\"engine\": \"native\", \"test\": \"%s\", \"isa\": \"%s\",\n"
                "  \"tokens_per_second\": {\"mean\": %.3f, \"sd\": %.3f},\n"
                "  \"threads\": %d, \"weight_bytes\": %lld,\n"
                "  \"read_bytes_per_second\": %.0f, \"peak_rss_bytes\": %.0f}",
                comma, speed.test.c_str(), info.isa, speed.mean, speed.sd, info.threads,
                static_cast<long long>(info.matrix_bytes), read, peak_bytes());
    comma = ",\n ";
  }
  std::printf("%s]\n", speeds.empty() ? "[" : "");
}

void bench(edgeqat_engine* engine, const Options& o, const edgeqat_info& info) {
  int64_t length = kBenchPrompt;
  if (!o.prompt.empty()) length = whole_number("--prompt", o.prompt.c_str(), 0, INT32_MAX);
  check_fits("--prompt", length, info);
  check_fits("--depth and --tokens", o.depth + o.tokens, info);
  std::vector<float> logits(info.vocabulary);
  std::vector<int32_t> prompt(std::max(length, o.depth));
  for (std::size_t i = 0; i < prompt.size(); ++i)
    prompt[i] = int32_t((i * 7919 + 13) % info.vocabulary);
  std::vector<double> prefill, decode;
  for (int64_t run = 0; length && run <= o.repeat; ++run) {  // the first warms up
    check(edgeqat_reset(engine));
    const double start = seconds();
    check(edgeqat_forward(engine, prompt.data(), length, logits.data(), 0));
    if (run) prefill.push_back(double(length) / (seconds() - start));
  }
  check(edgeqat_reset(engine));
  if (o.depth) check(edgeqat_forward(engine, prompt.data(), o.depth, logits.data(), 0));
  for (int64_t run = 0; o.tokens && run <= o.repeat; ++run) {
    check(edgeqat_rewind(engine, o.depth));
    const double start = seconds();
    for (int64_t i = 0; i < o.tokens; ++i) {
      const int32_t id = prompt.empty() ? 1 : prompt[i % prompt.size()];
      check(edgeqat_forward(engine, &id, 1, logits.data(), 0));
    }
    if (run) decode.push_back(double(o.tokens) / (seconds() - start));
  }
  double read = 0;
  check(edgeqat_read_speed(info.matrix_bytes, info.threads, &read));
  const std::string depth = o.depth ? "@d" + std::to_string(o.depth) : "";
  std::vector<Speed> speeds;
  if (length) speeds.emplace_back("pp" + std::to_string(length), prefill);
  if (o.tokens) speeds.emplace_back("tg" + std::to_string(o.tokens) + depth, decode);
  if (o.json) show_json(speeds, info, read);
  else show(speeds, info, read);
}

}  // namespace

int main(int count, char** arguments) {
  const Options o = parse(count, arguments);
  edgeqat_engine* engine =
      o.shape.empty() ? edgeqat_open(o.folder.c_str(), o.threads, o.context, o.half)
                      : edgeqat_open_random(o.shape.c_str(), o.scheme.c_str(), o.threads,
                                            o.context, o.half);
  if (!engine) stop();
  edgeqat_info info;
  check(edgeqat_get_info(engine, &info));
  if (o.bench) bench(engine, o, info);
  else generate(engine, o, info);
  edgeqat_close(engine);
  return 0;
}
