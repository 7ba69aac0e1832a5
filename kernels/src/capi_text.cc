// The C ABI of text: tokenizers, streams of text, chat templates.

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "capi_status.h"
#include "chat_template.h"
#include "edgeqat.h"
#include "text_stream.h"
#include "tokenizer.h"

struct edgeqat_tokenizer {
  edgeqat::Tokenizer tokenizer;
};

struct edgeqat_stream {
  edgeqat::TextStream stream;
  std::string text;  // what the last call gave out
};

struct edgeqat_chat {
  edgeqat::ChatTemplate chat;
};

namespace {

using namespace edgeqat;

template <class Value>
int64_t copied(const Value* from, std::size_t count, Value* to, int64_t capacity) {
  if (to && capacity > 0) std::copy_n(from, std::min(int64_t(count), capacity), to);
  return int64_t(count);
}

template <class Work>
const char* streamed(edgeqat_stream* stream, int64_t* bytes, const Work& work) {
  const char* text = nullptr;
  guarded([&] {
    stream->text = work();
    if (bytes) *bytes = int64_t(stream->text.size());
    text = stream->text.c_str();
  });
  return text;
}

}  // namespace

edgeqat_tokenizer* edgeqat_tokenizer_open(const char* folder) {
  edgeqat_tokenizer* made = nullptr;
  guarded([&] { made = new edgeqat_tokenizer{Tokenizer::open(folder)}; });
  return made;
}

void edgeqat_tokenizer_close(edgeqat_tokenizer* tokenizer) { delete tokenizer; }

int64_t edgeqat_encode(edgeqat_tokenizer* tokenizer, const char* text, int64_t bytes, int special,
                       int32_t* ids, int64_t capacity) {
  int64_t count = -1;
  guarded([&] {
    const std::size_t size = bytes < 0 ? std::strlen(text) : std::size_t(bytes);
    const std::vector<int32_t> made = tokenizer->tokenizer.encode({text, size}, special);
    count = copied(made.data(), made.size(), ids, capacity);
  });
  return count;
}

int64_t edgeqat_decode(const edgeqat_tokenizer* tokenizer, const int32_t* ids, int64_t count,
                       int special, char* text, int64_t capacity) {
  int64_t bytes = -1;
  guarded([&] {
    const std::string made =
        tokenizer->tokenizer.decode(ids, std::size_t(std::max<int64_t>(count, 0)), special);
    bytes = copied(made.c_str(), made.size() + 1, text, capacity) - 1;
  });
  return bytes;
}

edgeqat_stream* edgeqat_stream_new(const edgeqat_tokenizer* tokenizer, int special) {
  edgeqat_stream* made = nullptr;
  guarded([&] { made = new edgeqat_stream{{tokenizer->tokenizer, special != 0}, ""}; });
  return made;
}

const char* edgeqat_stream_next(edgeqat_stream* stream, int32_t id, int64_t* bytes) {
  return streamed(stream, bytes, [&] { return stream->stream.next(id); });
}

const char* edgeqat_stream_end(edgeqat_stream* stream, int64_t* bytes) {
  return streamed(stream, bytes, [&] { return stream->stream.end(); });
}

void edgeqat_stream_free(edgeqat_stream* stream) { delete stream; }

edgeqat_chat* edgeqat_chat_open(const char* folder) {
  edgeqat_chat* made = nullptr;
  guarded([&] { made = new edgeqat_chat{ChatTemplate::open(folder)}; });
  return made;
}

void edgeqat_chat_close(edgeqat_chat* chat) { delete chat; }

int64_t edgeqat_chat_apply(const edgeqat_chat* chat, const char* messages,
                           int add_generation_prompt, char* text, int64_t capacity) {
  int64_t bytes = -1;
  guarded([&] {
    const std::string made = chat->chat.apply(messages, add_generation_prompt != 0);
    bytes = copied(made.c_str(), made.size() + 1, text, capacity) - 1;
  });
  return bytes;
}
