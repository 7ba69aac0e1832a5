// What the handles of the C ABI hold.
#pragma once

#include "edgeqat.h"
#include "engine.h"
#include "generator.h"

struct edgeqat_engine {
  edgeqat::Engine engine;
};

struct edgeqat_sequence {
  const edgeqat_engine* owner;
  edgeqat::Sequence sequence;
};

struct edgeqat_sampler {
  edgeqat::Sampler sampler;
};

struct edgeqat_generator {
  edgeqat::Generator generator;
};
