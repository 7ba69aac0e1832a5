// The C ABI of several sequences on one engine.

#include <vector>

#include "capi_engine.h"
#include "capi_status.h"
#include "error.h"

using namespace edgeqat;

edgeqat_sequence* edgeqat_sequence_new(const edgeqat_engine* engine, int64_t context) {
  edgeqat_sequence* made = nullptr;
  guarded([&] {
    const Config& config = engine->engine.model().config;
    made = new edgeqat_sequence{
        engine, Sequence(config, context ? context : engine->engine.sequence().context())};
  });
  return made;
}

void edgeqat_sequence_free(edgeqat_sequence* sequence) { delete sequence; }

int64_t edgeqat_sequence_position(const edgeqat_sequence* sequence) {
  return sequence->sequence.position();
}

int edgeqat_sequence_rewind(edgeqat_sequence* sequence, int64_t position) {
  return guarded([&] { sequence->sequence.rewind(position); });
}

int edgeqat_forward_parts(edgeqat_engine* engine, const edgeqat_part* parts, int64_t count,
                          float* logits) {
  return guarded([&] {
    if (count < 1) throw Error("parts: there are none; give at least one");
    std::vector<Part> given;
    for (int64_t i = 0; i < count; ++i) {
      const edgeqat_part& part = parts[i];
      if (part.sequence && part.sequence->owner != engine)
        throw Error("parts: a sequence belongs to another engine; make it for this one");
      Sequence& sequence = part.sequence ? part.sequence->sequence : engine->engine.sequence();
      given.push_back({&sequence, part.ids, part.count, part.wanted});
    }
    engine->engine.forward(given, logits);
  });
}
