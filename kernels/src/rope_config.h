// Rotary embeddings as config.json describes them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "json.h"

namespace edgeqat {

struct RopeSpec {
  std::string type = "default";
  double theta = 10000, factor = 1;
  double partial = 1;                            // share of a head that is turned
  double low_frequency = 1, high_frequency = 4;  // llama3
  double original_positions = 8192;              // llama3, yarn, longrope
  double attention_factor = 1;                   // of cosines and sines: yarn, longrope
  double beta_fast = 32, beta_slow = 1;          // yarn
  bool truncate = true;                          // yarn
  std::vector<double> divisors;                  // longrope: of the frequencies
  double query_beta = 0;  // Llama 4: queries grow with the logarithm of their position
};

// `values`: rope_parameters, or those of one kind of layers; `positions` of the model.
RopeSpec rope_of(const Json& values, int64_t positions);

}  // namespace edgeqat
