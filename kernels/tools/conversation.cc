#include "conversation.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <iostream>

#include "jinja_value.h"

namespace edgeqat_run {
namespace {

using edgeqat::Value;

class Conversation {
 public:
  Conversation(edgeqat_engine* engine, const std::string& folder) : engine_(engine) {
    tokenizer_.open(folder);
    chat_ = edgeqat_chat_open(folder.c_str());
    if (!chat_) stop();
    edgeqat_info info;
    check(edgeqat_get_info(engine, &info));
    context_ = info.context;
  }
  ~Conversation() { edgeqat_chat_close(chat_); }
  Conversation(const Conversation&) = delete;
  Conversation& operator=(const Conversation&) = delete;

  void say(const std::string& line, Generation& generation, int64_t tokens) {
    add("user", line);
    std::vector<int32_t> ids = tokenizer_.encode(prompt(), false);
    const int64_t room = context_ - int64_t(ids.size()) + 1;  // the last token needs no place
    if (room < 2) stop(1, "chat: it fills the context; raise --context or begin anew");
    const std::ptrdiff_t same = keep(ids);
    const std::vector<int32_t> before(ids.begin(), ids.begin() + same);
    const std::vector<int32_t> rest(ids.begin() + same, ids.end());
    std::string answer;
    generation.run(before, rest, tokens ? std::min(tokens, room) : room, [&](int32_t id) {
      ids.push_back(id);
      answer += tokenizer_.show(id);
    });
    answer += tokenizer_.show_rest();
    std::printf("\n");
    std::fflush(stdout);
    edgeqat_info info;
    check(edgeqat_get_info(engine_, &info));
    ids.resize(std::min(ids.size(), std::size_t(info.position)));
    seen_ = ids;
    add("assistant", answer);
  }

 private:
  void add(const char* role, const std::string& content) {
    messages_.push_back(Value::dict(
        {{"role", Value::string(role)}, {"content", Value::string(content)}}));
  }

  std::string prompt() const {
    const std::string messages = Value::list(messages_).json(-1);
    std::string text;
    for (int64_t size = 4096;;) {
      text.resize(std::size_t(size));
      const int64_t bytes = edgeqat_chat_apply(chat_, messages.c_str(), 1, text.data(), size);
      if (bytes < 0) stop();
      text.resize(std::size_t(std::min(bytes, size)));
      if (bytes < size) return text;
      size = bytes + 1;
    }
  }

  // Forgets what the engine read beyond the beginning of ids; how many it holds of them.
  std::ptrdiff_t keep(const std::vector<int32_t>& ids) {
    const std::size_t most = std::min(seen_.size(), ids.size() - 1);
    std::size_t same = 0;
    while (same < most && seen_[same] == ids[same]) ++same;
    check(edgeqat_rewind(engine_, int64_t(same)));
    return std::ptrdiff_t(same);
  }

  edgeqat_engine* engine_;
  edgeqat_chat* chat_ = nullptr;
  Tokenizer tokenizer_;
  Value::List messages_;
  std::vector<int32_t> seen_;
  int64_t context_ = 0;
};

}  // namespace

void converse(edgeqat_engine* engine, const std::string& folder, Generation& generation,
              int64_t tokens) {
  Conversation conversation(engine, folder);
  const bool asks = isatty(STDIN_FILENO);
  for (std::string line;;) {
    if (asks) std::printf("> ");
    std::fflush(stdout);
    if (!std::getline(std::cin, line)) break;
    if (!line.empty()) conversation.say(line, generation, tokens);
  }
}

}  // namespace edgeqat_run
