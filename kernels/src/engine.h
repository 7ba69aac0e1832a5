// The decoding engine: a model, its cache, its threads. One sequence, batch 1.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "attention.h"
#include "model.h"
#include "rope.h"
#include "widths.h"

namespace edgeqat {

class Engine {
 public:
  // context 0: the longest sequence of the model; threads 0: one per physical core.
  Engine(Model model, int threads, int64_t context);

  // Appends tokens. Logits [vocabulary] of the last one, or with `all` [count][vocabulary].
  // outputs, if given, [layers][count][hidden]: the residual stream behind each layer. Where it
  // throws, the engine holds the tokens it held before.
  void forward(const int32_t* ids, int64_t count, float* logits, bool all,
               float* outputs = nullptr);
  // Forgets the tokens from `position` on.
  void rewind(int64_t position);

  int64_t position() const { return position_; }
  int64_t context() const { return context_; }
  int threads() const { return pool_.threads(); }
  const Isa& isa() const { return isa_; }
  const Model& model() const { return model_; }

 private:
  void append(const int32_t* ids, int64_t count, float* logits, bool all, float* outputs);
  void run_chunk(const int32_t* ids, int64_t count, float* outputs, int64_t stride);
  void attention_block(int64_t layer, int64_t count);
  void mlp_block(int64_t layer, int64_t count);
  void prepare_heads(int64_t layer, int64_t count);
  void norm(const float* weight, int64_t count);
  void add_residual(int64_t count);
  void product(const Linear& layer, const Inputs& inputs, float* out, Range tile_rows);
  void project(std::vector<std::pair<const Linear*, float*>> layers, const float* x,
               int64_t count, const uint8_t* high = nullptr);

  const Isa& isa_;
  Model model_;
  Pool pool_;
  Rope rope_;
  int64_t context_, position_ = 0;
  Widths widths_;
  Attention attention_;
  Buffer<uint8_t> cache_;
  std::vector<std::vector<Stream>> streams_;  // [layer][kv_head * streams per head]
  InputBuffer inputs_;
  Buffer<float> x_, normed_, q_, k_, v_, mixed_, gate_, up_, cosine_, sine_, to_first_;
};

}  // namespace edgeqat
