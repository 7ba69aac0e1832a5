// Tokens one by one from an engine, and their text on stdout. What fails ends the program.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "edgeqat.h"

namespace edgeqat_run {

[[noreturn]] void stop(int code, const std::string& message);
[[noreturn]] void stop();  // with what the library says of its last call
void check(int status);

class Generation {
 public:
  Generation(edgeqat_engine* engine, float temperature, int64_t top_k, float top_p, uint64_t seed,
             bool lookup);
  ~Generation();
  Generation(const Generation&) = delete;
  Generation& operator=(const Generation&) = delete;

  // Appends ids to `before`, which the engine holds, and calls each(id) for at most `tokens` that
  // follow, to the end of the text.
  void run(const std::vector<int32_t>& before, const std::vector<int32_t>& ids, int64_t tokens,
           const std::function<void(int32_t)>& each);

 private:
  edgeqat_engine* engine_;
  edgeqat_sampler* sampler_;
  bool lookup_;
};

class Tokenizer {
 public:
  Tokenizer() = default;
  ~Tokenizer();
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  void open(const std::string& folder);
  std::vector<int32_t> encode(const std::string& text, bool special);

  // What one more token adds to the text, to stdout; what was held back.
  std::string show(int32_t id);
  std::string show_rest();

 private:
  edgeqat_tokenizer* tokenizer_ = nullptr;
  edgeqat_stream* stream_ = nullptr;
};

}  // namespace edgeqat_run
