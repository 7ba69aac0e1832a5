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

struct Own {
  edgeqat_sequence* sequence;
  explicit Own(const Opened& opened) : sequence(edgeqat_sequence_new(opened.engine, 0)) {}
  ~Own() { edgeqat_sequence_free(sequence); }
};

// Sequences that a pass computes together give the bits that `once` and one more token gave alone.
void check_parts(Expect& expect, const std::string& folder, const Logits& once,
                 const Logits& next) {
  Opened opened(folder, 2), other(folder, 1);
  const Own one(opened), two(opened), foreign(other);
  const int64_t vocabulary = opened.info.vocabulary;
  std::vector<int32_t> ids;
  for (int64_t i = 0; i <= kPrompt; ++i) ids.push_back(opened.id(i));
  Logits logits(3 * vocabulary);
  const auto row = [&](int64_t i) {
    return Logits(logits.begin() + i * vocabulary, logits.begin() + (i + 1) * vocabulary);
  };
  edgeqat_part parts[] = {{one.sequence, ids.data(), kPrompt, 1},
                          {two.sequence, ids.data(), kPrompt / 2, 0},
                          {nullptr, ids.data(), kPrompt + 1, 2}};
  expect.that(edgeqat_forward_parts(opened.engine, parts, 3, logits.data()) == EDGEQAT_OK &&
                  same(row(0), once) && same(row(1), once) && same(row(2), next),
              "prompts computed together differ");
  edgeqat_part more[] = {{one.sequence, &ids[kPrompt], 1, 1},
                         {two.sequence, &ids[kPrompt / 2], kPrompt - kPrompt / 2, 1}};
  expect.that(edgeqat_forward_parts(opened.engine, more, 2, logits.data()) == EDGEQAT_OK &&
                  same(row(0), next) && same(row(1), once) &&
                  edgeqat_sequence_position(two.sequence) == kPrompt,
              "a step beside a prompt differs");
  parts[0].count = parts[1].count = 1;
  parts[1].sequence = one.sequence;
  expect.that(edgeqat_forward_parts(opened.engine, parts, 2, logits.data()) == EDGEQAT_FAILED &&
                  refused("parts: two of them"),
              "one sequence in two parts is not refused");
  parts[1].sequence = foreign.sequence;
  expect.that(edgeqat_forward_parts(opened.engine, parts, 2, logits.data()) == EDGEQAT_FAILED &&
                  refused("parts: a sequence belongs"),
              "a sequence of another engine is not refused");
  edgeqat_sequence_rewind(one.sequence, kPrompt);
  expect.that(edgeqat_forward_parts(opened.engine, more, 1, logits.data()) == EDGEQAT_OK &&
                  same(row(0), next),
              "a rewound sequence differs");
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
  check_parts(expect, folder, once, next);
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
