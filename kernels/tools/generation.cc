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
                       uint64_t seed)
    : engine_(engine), sampler_(edgeqat_sampler_new(temperature, top_k, top_p, seed)) {
  if (!sampler_) stop(2, edgeqat_error());
  edgeqat_info info;
  check(edgeqat_get_info(engine, &info));
  logits_.resize(std::size_t(info.vocabulary));
}

void Generation::run(const std::vector<int32_t>& ids, int64_t tokens,
                     const std::function<void(int32_t)>& each) {
  check(edgeqat_forward(engine_, ids.data(), int64_t(ids.size()), logits_.data(), 0));
  for (int64_t i = 0; i < tokens; ++i) {
    const int32_t id = edgeqat_sample(sampler_, logits_.data(), int64_t(logits_.size()));
    if (id < 0) stop();
    if (edgeqat_is_stop(engine_, id)) return;
    each(id);
    if (i + 1 < tokens) check(edgeqat_forward(engine_, &id, 1, logits_.data(), 0));
  }
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
