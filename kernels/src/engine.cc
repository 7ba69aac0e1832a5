#include "engine.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "error.h"
#include "registry.h"

namespace edgeqat {
namespace {

constexpr int64_t kChunk = 240;  // tokens of a prompt computed at once

AttentionShape attention_shape(const Config& config) {
  return {config.heads, config.kv_heads, config.head_dim, config.activation_bits};
}

int64_t checked_context(const Config& config, int64_t wanted) {
  if (wanted < 0 || wanted > config.positions)
    throw Error("context: " + std::to_string(wanted) + " is not within the model's " +
                std::to_string(config.positions) + " positions; choose a shorter one");
  return wanted ? wanted : config.positions;
}

}  // namespace

Engine::Engine(Model model, int threads, int64_t context)
    : isa_(active_isa()),
      model_(std::move(model)),
      pool_(threads > 0 ? threads : physical_cores()),
      rope_(model_.config.rope, model_.config.head_dim),
      context_(checked_context(model_.config, context)),
      widths_(model_.config, context_),
      attention_(isa_, pool_, attention_shape(model_.config), widths_) {
  const Config& c = model_.config;
  std::vector<StreamShape> shapes;
  if (widths_.two_streams())
    shapes.push_back({kHighBits, c.head_dim, round_up(widths_.most_high(), kInputPad)});
  shapes.push_back({c.kv_bits, c.head_dim, round_up(context_, kInputPad)});
  int64_t bytes = 0;
  for (const StreamShape& shape : shapes) bytes += shape.bytes();
  // every stream begins with the first tokens: huge pages would hold all of a context for them
  cache_ = Buffer<uint8_t>(bytes * c.kv_heads * c.layers, Pages::small);
  uint8_t* memory = cache_.data();
  streams_.resize(c.layers);
  for (auto& layer : streams_)
    for (int64_t head = 0; head < c.kv_heads; ++head)
      for (const StreamShape& shape : shapes) {
        layer.emplace_back(shape, memory);
        memory += shape.bytes();
      }
  const int64_t chunk = std::min(kChunk, context_);
  x_ = Buffer<float>(chunk * c.hidden);
  normed_ = Buffer<float>(chunk * c.hidden);
  q_ = Buffer<float>(chunk * c.heads * c.head_dim);
  k_ = Buffer<float>(chunk * c.kv_heads * c.head_dim);
  v_ = Buffer<float>(chunk * c.kv_heads * c.head_dim);
  mixed_ = Buffer<float>(chunk * c.heads * c.head_dim);
  gate_ = Buffer<float>(chunk * c.ffn);
  up_ = Buffer<float>(chunk * c.ffn);
  cosine_ = Buffer<float>(chunk * c.head_dim / 2);
  sine_ = Buffer<float>(chunk * c.head_dim / 2);
  to_first_ = Buffer<float>(chunk * c.heads);
}

void Engine::rewind(int64_t position) {
  if (position < 0 || position > position_)
    throw Error("position: " + std::to_string(position) + " is not within the " +
                std::to_string(position_) + " tokens so far");
  position_ = position;
  const bool two = widths_.two_streams();
  for (std::size_t layer = 0; layer < streams_.size(); ++layer) {
    const int64_t high = two ? widths_.kept_high(int64_t(layer), position) : 0;
    for (std::size_t i = 0; i < streams_[layer].size(); ++i)
      streams_[layer][i].truncate(two && i % 2 == 0 ? high : position - high);
  }
}

void Engine::forward(const int32_t* ids, int64_t count, float* logits, bool all,
                     float* outputs) {
  const int64_t vocabulary = model_.config.vocabulary, before = position_;
  if (count < 1) throw Error("ids: there are none; give at least one token");
  if (count > context_ - position_)
    throw Error("context: " + std::to_string(position_ + count) + " tokens do not fit into " +
                std::to_string(context_) + "; shorten the prompt or reset the engine");
  for (int64_t i = 0; i < count; ++i)
    if (ids[i] < 0 || ids[i] >= vocabulary)
      throw Error("ids: " + std::to_string(ids[i]) + " is not in the vocabulary of " +
                  std::to_string(vocabulary));
  try {
    append(ids, count, logits, all, outputs);
  } catch (...) {  // no memory: some layers have these tokens already
    rewind(before);
    throw;
  }
}

void Engine::append(const int32_t* ids, int64_t count, float* logits, bool all, float* outputs) {
  const int64_t vocabulary = model_.config.vocabulary;
  for (int64_t done = 0; done < count; done += kChunk) {
    const int64_t tokens = std::min(kChunk, count - done);
    const int64_t hidden = model_.config.hidden;
    run_chunk(ids + done, tokens, outputs ? outputs + done * hidden : nullptr, count * hidden);
    position_ += tokens;
    if (!all && done + tokens < count) continue;
    const int64_t first = all ? 0 : tokens - 1;
    if (!all) std::memmove(x_.data(), x_.data() + first * hidden, hidden * sizeof(float));
    norm(model_.norm, tokens - first);
    const float* out = normed_.data();
    if (model_.turn.matrix.tiles) {
      project({{&model_.turn, x_.data()}}, out, tokens - first);
      out = x_.data();
    }
    project({{&model_.head, logits + (all ? done * vocabulary : 0)}}, out, tokens - first);
  }
}

// outputs: where the first layer's go, the next layer's `stride` floats behind; or null.
void Engine::run_chunk(const int32_t* ids, int64_t count, float* outputs, int64_t stride) {
  const Config& c = model_.config;
  const int64_t half = c.head_dim / 2;
  for (int64_t t = 0; t < count; ++t) {
    embed(model_.embedding, ids[t], x_.data() + t * c.hidden);
    rope_.angles(position_ + t, cosine_.data() + t * half, sine_.data() + t * half);
  }
  widths_.begin(position_, count);
  for (int64_t layer = 0; layer < c.layers; ++layer) {
    attention_block(layer, count);
    mlp_block(layer, count);
    if (outputs)
      std::memcpy(outputs + layer * stride, x_.data(), count * c.hidden * sizeof(float));
  }
}

void Engine::attention_block(int64_t layer, int64_t count) {
  const Block& block = model_.blocks[layer];
  const uint8_t* high = widths_.high(layer, position_);
  norm(block.attention_norm, count);
  project({{&block.query, q_.data()}, {&block.key, k_.data()}, {&block.value, v_.data()}},
          normed_.data(), count, high);
  prepare_heads(layer, count);
  const bool wanted = widths_.listens(layer + 1);
  attention_.attend(streams_[layer], {layer, position_, count, q_.data(), mixed_.data(),
                                      wanted ? to_first_.data() : nullptr});
  if (wanted) widths_.decide(layer + 1, position_, count, to_first_.data(), *block.threshold);
  project({{&block.output, normed_.data()}}, mixed_.data(), count, high);
  add_residual(count);
}

void Engine::mlp_block(int64_t layer, int64_t count) {
  const Block& block = model_.blocks[layer];
  const uint8_t* high = widths_.high(layer, position_);
  const int64_t ffn = model_.config.ffn;
  norm(block.mlp_norm, count);
  project({{&block.gate, gate_.data()}, {&block.up, up_.data()}}, normed_.data(), count, high);
  pool_.split(count * ffn, [&](int64_t begin, int64_t end) {
    isa_.swiglu(gate_.data() + begin, up_.data() + begin, end - begin, gate_.data() + begin);
  });
  project({{&block.down, normed_.data()}}, gate_.data(), count, high);
  add_residual(count);
}

// Norms per head, rotary embedding, rotation; keys and values go into the cache.
void Engine::prepare_heads(int64_t layer, int64_t count) {
  const Config& c = model_.config;
  const Block& block = model_.blocks[layer];
  std::vector<Stream>& streams = streams_[layer];
  const int64_t dim = c.head_dim, turned = c.rotate_keys ? rotation_block(dim) : 0;
  const int64_t per_head = int64_t(streams.size()) / c.kv_heads;
  const auto turn = [&](float* x, const float* weight, int64_t t) {
    if (weight) isa_.rms_norm(x, weight, c.epsilon, dim, x);
    Rope::turn(x, cosine_.data() + t * dim / 2, sine_.data() + t * dim / 2, dim);
    isa_.rotate(x, dim, turned);
  };
  const auto heads = [&](int64_t begin, int64_t end) {
    for (int64_t t = 0; t < count; ++t)
      for (int64_t head = begin; head < std::min(end, c.heads); ++head)
        turn(q_.data() + (t * c.heads + head) * dim, block.query_norm, t);
    for (int64_t i = std::max(begin, c.heads); i < end; ++i) {
      const int64_t head = i - c.heads;
      for (int64_t t = 0; t < count; ++t) {
        float* key = k_.data() + (t * c.kv_heads + head) * dim;
        turn(key, block.key_norm, t);
        if (block.key_offset)
          for (int64_t d = 0; d < dim; ++d) key[d] -= block.key_offset[head * dim + d];
        const int64_t before = widths_.kept_high(layer, position_ + t);
        const bool low = per_head > 1 && widths_.kept_high(layer, position_ + t + 1) == before;
        streams[head * per_head + low].append(isa_, key,
                                              v_.data() + (t * c.kv_heads + head) * dim);
      }
    }
  };
  if (count == 1) heads(0, c.heads + c.kv_heads);  // too little to share
  else pool_.split(c.heads + c.kv_heads, heads);
}

void Engine::norm(const float* weight, int64_t count) {
  const int64_t hidden = model_.config.hidden;
  const auto some = [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      isa_.rms_norm(x_.data() + t * hidden, weight, model_.config.epsilon, hidden,
                    normed_.data() + t * hidden);
  };
  if (count == 1) some(0, 1);
  else pool_.split(count, some);
}

void Engine::add_residual(int64_t count) {
  float* x = x_.data();
  const float* y = normed_.data();
  const auto some = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) x[i] += y[i];
  };
  if (count == 1) some(0, model_.config.hidden);
  else pool_.split(count * model_.config.hidden, some);
}

void Engine::product(const Linear& layer, const Inputs& inputs, float* out, Range tile_rows) {
  const int64_t rows = layer.matrix.rows;
  isa_.product(layer.matrix, inputs, out, rows, tile_rows.begin, tile_rows.end);
  if (!layer.bias) return;
  const int64_t end = std::min(rows, tile_rows.end * kRows);
  for (int64_t t = 0; t < inputs.tokens; ++t)
    for (int64_t row = tile_rows.begin * kRows; row < end; ++row)
      out[t * rows + row] += layer.bias[row];
}

// Layers of one input: those that agree on its codes share them and one call of the pool.
void Engine::project(std::vector<std::pair<const Linear*, float*>> layers, const float* x,
                     int64_t count, const uint8_t* high) {
  for (std::size_t begin = 0, end; begin < layers.size(); begin = end) {
    const InputSpec& spec = layers[begin].first->input;
    for (end = begin; end < layers.size() && layers[end].first->input == spec;) ++end;
    const Inputs& inputs = inputs_.fill(isa_, &pool_, x, count, spec.columns, spec, high);
    pool_.run([&](int thread) {
      for (std::size_t i = begin; i < end; ++i) {
        const auto& [layer, out] = layers[i];
        product(*layer, inputs, out, pool_.share(layer->matrix.tile_rows(), thread));
      }
    });
  }
}

}  // namespace edgeqat
