// Engines on one packed folder, through the C ABI: several at once, closed in mid-generation, full,
// rewound, on any number of threads: always the same bits or one line of error.

#include <cstring>
#include <thread>
#include <vector>

#include "edgeqat.h"
#include "expect.h"

namespace edgeqat {
namespace {

constexpr int64_t kPrompt = 50, kContext = 64;

using Logits = std::vector<float>;

struct Opened {
  edgeqat_engine* engine;
  edgeqat_info info;

  Opened(const std::string& folder, int threads) {
    engine = edgeqat_open(folder.c_str(), threads, kContext, 0);
    if (!engine) {
      std::fprintf(stderr, "error: %s\n", edgeqat_error());
      std::exit(1);
    }
    edgeqat_get_info(engine, &info);
  }
  ~Opened() { edgeqat_close(engine); }

  int32_t id(int64_t position) const { return int32_t((position * 7919 + 13) % info.vocabulary); }

  // Appends `count` tokens at once; the logits of the last one.
  Logits append(int64_t count) {
    edgeqat_get_info(engine, &info);
    std::vector<int32_t> ids;
    for (int64_t i = 0; i < count; ++i) ids.push_back(id(info.position + i));
    Logits logits(info.vocabulary);
    if (edgeqat_forward(engine, ids.data(), count, logits.data(), 0) != EDGEQAT_OK) return {};
    return logits;
  }
};

bool same(const Logits& a, const Logits& b) {
  return a.size() == b.size() && !a.empty() &&
         std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

bool refused(const char* words) {
  const std::string line = edgeqat_error();
  return line.find(words) == 0 && line.find('\n') == line.npos;
}

}  // namespace

void check_engine(Expect& expect, const std::string& folder) {
  Opened first(folder, 1), second(folder, 2);
  const Logits once = first.append(kPrompt);
  Logits step;
  for (int64_t i = 0; i < kPrompt; ++i) {
    step = second.append(1);
    if (i == kPrompt / 2) {  // a third one comes and goes in mid-generation
      Opened third(folder, 3);
      third.append(kPrompt / 3);
      third.append(1);
    }
  }
  expect.that(same(once, step), "one pass and token by token differ");

  const Logits next = first.append(1);
  edgeqat_rewind(first.engine, 20);
  first.append(kPrompt - 20);
  expect.that(same(next, first.append(1)), "a rewound engine differs");
  edgeqat_rewind(first.engine, 2);
  first.append(kPrompt - 2);
  expect.that(same(next, first.append(1)), "an engine rewound into the sinks differs");
  expect.that(edgeqat_rewind(first.engine, 60) == EDGEQAT_FAILED && refused("position: 60"),
              "a rewind ahead is not refused");

  expect.that(second.append(kContext - kPrompt).size() > 0, "a full context is refused");
  expect.that(second.append(1).empty() && refused("context: 65 tokens do not fit into 64"),
              "an overflow is not refused");
  expect.that(edgeqat_reset(second.engine) == EDGEQAT_OK && same(once, second.append(kPrompt)),
              "a reset engine differs");
  expect.that(second.append(kContext).empty() && refused("context: "),
              "a prompt behind the end is not refused");

  const int32_t wrong[] = {-1, int32_t(first.info.vocabulary)};
  for (int32_t id : wrong) {
    Logits logits(first.info.vocabulary);
    const int status = edgeqat_forward(first.engine, &id, 1, logits.data(), 0);
    expect.that(status == EDGEQAT_FAILED && refused("ids: "), "an impossible id is not refused");
  }

  std::vector<std::thread> threads;
  std::vector<Logits> found(3);
  for (std::size_t i = 0; i < found.size(); ++i)
    threads.emplace_back([&, i] {
      Opened own(folder, 2);
      found[i] = own.append(kPrompt);
    });
  for (auto& thread : threads) thread.join();
  for (const Logits& logits : found)
    expect.that(same(once, logits), "engines on several threads differ");
}

}  // namespace edgeqat
