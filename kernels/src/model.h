// A model ready to run: every matrix bound to the mapped file (packed) or to memory (fp16).
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "buffer.h"
#include "config.h"
#include "inputs.h"
#include "isa.h"
#include "pool.h"
#include "tensors.h"

namespace edgeqat {

struct Linear {
  Matrix matrix;
  InputSpec input;
  const float* bias = nullptr;
};

struct Block {
  // null where a family has none
  const float *attention_norm = nullptr, *attention_end = nullptr;
  const float *mlp_norm = nullptr, *mlp_end = nullptr;
  const float *query_norm = nullptr, *key_norm = nullptr;
  const float* key_offset = nullptr;  // [K][D], null without
  const float* threshold = nullptr;   // of token importance, null without
  Linear query, key, value, output, gate, up, down;
};

struct Model {
  Config config;
  Linear head;
  Matrix embedding;                       // packed, or fp16
  std::vector<Block> blocks;
  const float* norm = nullptr;
  Linear turn;                            // before a tied head: rotated residual stream, or none
  std::unique_ptr<TensorFile> file;       // what packed matrices point into
  std::vector<Buffer<uint8_t>> memory;    // what fp16 and random ones point into

  int64_t matrix_bytes() const;           // read by one decoding step
  int64_t embedding_bytes() const;        // 0 where it is the head's matrix

  // Maps a packed folder. `half`: expand every matrix to fp16 instead, with float activations and
  // an fp16 cache: the baseline that packed weights are compared with.
  static Model open(const std::string& folder, bool half);

  // Random weights of a named shape (kShapes of random.cc) at a scheme, with the default
  // groups, rotations and sinks, or fp16.
  static Model random(const std::string& shape, const std::string& scheme, bool half);
};

// The embedding of one token: out[columns].
void embed(const Matrix& embedding, int64_t id, float* out);

}  // namespace edgeqat
