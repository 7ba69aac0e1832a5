// The C ABI of sampling and of tokens that continue a text.

#include <vector>

#include "capi_engine.h"
#include "capi_status.h"
#include "error.h"

using namespace edgeqat;

edgeqat_sampler* edgeqat_sampler_new(float temperature, int64_t top_k, float top_p,
                                     uint64_t seed) {
  edgeqat_sampler* sampler = nullptr;
  guarded([&] {
    if (!(temperature >= 0) || top_k < 0 || !(top_p >= 0 && top_p <= 1))
      throw Error("sampling: temperature and top_k are at least 0, top_p is from 0 to 1");
    sampler = new edgeqat_sampler{Sampler({temperature, top_k, top_p, seed})};
  });
  return sampler;
}

int32_t edgeqat_sample(edgeqat_sampler* sampler, const float* logits, int64_t count) {
  int32_t id = -1;
  guarded([&] { id = sampler->sampler.next(logits, count); });
  return id;
}

void edgeqat_sampler_free(edgeqat_sampler* sampler) { delete sampler; }

edgeqat_generator* edgeqat_generator_new(edgeqat_engine* engine, edgeqat_sampler* sampler,
                                         const int32_t* before, int64_t before_count,
                                         const int32_t* ids, int64_t count, int64_t limit,
                                         int lookup) {
  edgeqat_generator* made = nullptr;
  guarded([&] {
    if (before_count < 0 || count < 0 || limit < 0)
      throw Error("generator: counts are at least 0");
    const std::vector<int32_t> seen(before, before + before_count);
    made = new edgeqat_generator{Generator(engine->engine, sampler->sampler, seen,
                                           {ids, ids + count}, limit, lookup != 0)};
  });
  return made;
}

static_assert(Generator::kEnd == EDGEQAT_END, "both say that no token follows");

int32_t edgeqat_generator_next(edgeqat_generator* generator) {
  int32_t id = EDGEQAT_ERROR;
  guarded([&] { id = generator->generator.next(); });
  return id;
}

int edgeqat_generator_end(edgeqat_generator* generator) {
  return guarded([&] { generator->generator.end(); });
}

int edgeqat_generator_guesses(const edgeqat_generator* generator, int64_t* guessed,
                              int64_t* right) {
  *guessed = generator->generator.guessed();
  *right = generator->generator.right();
  return EDGEQAT_OK;
}

void edgeqat_generator_free(edgeqat_generator* generator) { delete generator; }
