#include "generation.h"

#include <cstdio>
#include <cstdlib>

namespace edgeqat_run {
namespace {

std::string shown(const char* text, int64_t bytes) {
  if (!text) stop();
  std::fwrite(text, 1, std::size_t(bytes), stdout);
  std::fflush(stdout);
  return std::string(text, std::size_t(bytes));
}

}  // namespace

void stop(int code, const std::string& message) {
  std::fprintf(stderr, "error: %s\n", message.c_str());
  std::exit(code);
}

void stop() { stop(edgeqat_last_status() == EDGEQAT_UNSUPPORTED ? 2 : 1, edgeqat_error()); }

void check(int status) {
  if (status != EDGEQAT_OK) stop();
}

Generation::Generation(edgeqat_engine* engine, float temperature, int64_t top_k, float top_p,
                       uint64_t seed, bool lookup)
    : engine_(engine),
      sampler_(edgeqat_sampler_new(temperature, top_k, top_p, seed)),
      lookup_(lookup) {
  if (!sampler_) stop(2, edgeqat_error());
}

Generation::~Generation() { edgeqat_sampler_free(sampler_); }

void Generation::run(const std::vector<int32_t>& before, const std::vector<int32_t>& ids,
                     int64_t tokens, const std::function<void(int32_t)>& each) {
  edgeqat_generator* generator =
      edgeqat_generator_new(engine_, sampler_, before.data(), int64_t(before.size()), ids.data(),
                            int64_t(ids.size()), tokens, lookup_);
  if (!generator) stop();
  int32_t id;
  while ((id = edgeqat_generator_next(generator)) >= 0) each(id);
  if (id == EDGEQAT_ERROR) stop();
  edgeqat_generator_free(generator);
}

Tokenizer::~Tokenizer() {
  edgeqat_stream_free(stream_);
  edgeqat_tokenizer_close(tokenizer_);
}

void Tokenizer::open(const std::string& folder) {
  tokenizer_ = edgeqat_tokenizer_open(folder.c_str());
  if (!tokenizer_) stop();
  stream_ = edgeqat_stream_new(tokenizer_, 0);
  if (!stream_) stop();
}

std::vector<int32_t> Tokenizer::encode(const std::string& text, bool special) {
  std::vector<int32_t> ids(text.size() + 64);
  for (;;) {
    const int64_t count = edgeqat_encode(tokenizer_, text.data(), int64_t(text.size()), special,
                                         ids.data(), int64_t(ids.size()));
    if (count < 0) stop();
    const bool whole = count <= int64_t(ids.size());
    ids.resize(std::size_t(count));
    if (whole) return ids;
  }
}

std::string Tokenizer::show(int32_t id) {
  int64_t bytes = 0;
  const char* text = edgeqat_stream_next(stream_, id, &bytes);
  return shown(text, bytes);
}

std::string Tokenizer::show_rest() {
  int64_t bytes = 0;
  const char* text = edgeqat_stream_end(stream_, &bytes);
  return shown(text, bytes);
}

}  // namespace edgeqat_run
