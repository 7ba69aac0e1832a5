// The decoding engine: a model and its threads, and the sequence that it begins with. Several
// sequences may be computed at once: each product reads its weights once for all of them.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "attention.h"
#include "model.h"
#include "rope.h"
#include "sequence.h"

namespace edgeqat {

// Tokens that a sequence appends, and of how many of the last ones logits are wanted.
struct Part {
  Sequence* sequence;
  const int32_t* ids;
  int64_t count, wanted;
};

class Engine {
 public:
  // context 0: the longest sequence of the model; threads 0: one per physical core.
  Engine(Model model, int threads, int64_t context);

  // Appends the tokens of each part, of sequences of this engine's model that differ. Logits
  // [sum of wanted][vocabulary], in the order of the parts; no number depends on the other parts.
  // outputs, for a single part: [layers][count][hidden], the residual stream behind each layer.
  // Where it throws, the sequences hold the tokens they held before.
  void forward(const std::vector<Part>& parts, float* logits, float* outputs = nullptr);

  Sequence& sequence() { return sequence_; }
  const Sequence& sequence() const { return sequence_; }
  int threads() const { return pool_.threads(); }
  const Isa& isa() const { return isa_; }
  const Model& model() const { return model_; }

 private:
  void check(const std::vector<Part>& parts) const;
  void append(const std::vector<Part>& parts, float* logits, float* outputs);
  void run_chunk(const std::vector<Span>& spans, float* outputs, int64_t stride);
  void predict(const std::vector<int64_t>& rows, float* logits);
  void attention_block(int64_t layer, const std::vector<Span>& spans);
  void mlp_block(int64_t layer, int64_t count);
  void prepare_heads(int64_t layer, const std::vector<Span>& spans);
  const uint8_t* high_rows(int64_t layer, const std::vector<Span>& spans);
  // What a block reads: x, behind its norm where it has one.
  const float* read(const float* weight, int64_t count);
  // Adds what a block leaves in normed_, behind its norm where it has one.
  void add_residual(const float* weight, int64_t count);
  void rms_norm(const float* x, const float* weight, int64_t width, int64_t count, float* out);
  void activate(int64_t values);
  void product(const Linear& layer, const Inputs& inputs, float* out, Range tile_rows);
  void project(std::vector<std::pair<const Linear*, float*>> layers, const float* x,
               int64_t count, const uint8_t* high = nullptr);

  const Isa& isa_;
  Model model_;
  Pool pool_;
  std::vector<Rope> ropes_;
  Sequence sequence_;
  Attention attention_;
  InputBuffer inputs_;
  int64_t most_rows_;             // that are computed at once
  const uint8_t* high_ = nullptr;  // which of a layer's rows are, or null: none
  Buffer<uint8_t> high_memory_;
  Buffer<float> x_, normed_, q_, k_, v_, mixed_, gate_, up_, to_first_;
  std::vector<Buffer<float>> cosine_, sine_;  // of each rope
};

}  // namespace edgeqat
