#include "engine.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "error.h"
#include "registry.h"

namespace edgeqat {
namespace {

constexpr int64_t kChunk = 240;         // tokens computed at once
constexpr int64_t kLeastShared = 8192;  // values that a thread alone walks over sooner

AttentionShape attention_shape(const Config& config) {
  return {config.heads, config.kv_heads, config.head_dim, config.activation_bits};
}

int64_t rows_of(const std::vector<Span>& spans) { return spans.back().row + spans.back().count; }

}  // namespace

Engine::Engine(Model model, int threads, int64_t context)
    : isa_(active_isa()),
      model_(std::move(model)),
      pool_(threads > 0 ? threads : physical_cores()),
      rope_(model_.config.rope, model_.config.head_dim),
      sequence_(model_.config, context),
      attention_(isa_, pool_, attention_shape(model_.config)),
      most_rows_(std::min(kChunk, model_.config.positions)) {
  const Config& c = model_.config;
  high_memory_ = Buffer<uint8_t>(most_rows_);
  x_ = Buffer<float>(most_rows_ * c.hidden);
  normed_ = Buffer<float>(most_rows_ * c.hidden);
  q_ = Buffer<float>(most_rows_ * c.heads * c.head_dim);
  k_ = Buffer<float>(most_rows_ * c.kv_heads * c.head_dim);
  v_ = Buffer<float>(most_rows_ * c.kv_heads * c.head_dim);
  mixed_ = Buffer<float>(most_rows_ * c.heads * c.head_dim);
  gate_ = Buffer<float>(most_rows_ * c.ffn);
  up_ = Buffer<float>(most_rows_ * c.ffn);
  cosine_ = Buffer<float>(most_rows_ * c.head_dim / 2);
  sine_ = Buffer<float>(most_rows_ * c.head_dim / 2);
  to_first_ = Buffer<float>(most_rows_ * c.heads);
}

void Engine::check(const std::vector<Part>& parts) const {
  const int64_t vocabulary = model_.config.vocabulary;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const Part& part = parts[i];
    const int64_t position = part.sequence->position(), context = part.sequence->context();
    for (std::size_t j = 0; j < i; ++j)
      if (parts[j].sequence == part.sequence)
        throw Error("parts: two of them append to one sequence; join their tokens");
    if (part.count < 1) throw Error("ids: there are none; give at least one token");
    if (part.wanted < 0 || part.wanted > part.count)
      throw Error("wanted: " + std::to_string(part.wanted) + " is not from 0 to the " +
                  std::to_string(part.count) + " tokens that are given");
    if (part.count > context - position)
      throw Error("context: " + std::to_string(position + part.count) + " tokens do not fit into " +
                  std::to_string(context) + "; shorten the prompt or reset the engine");
    for (int64_t t = 0; t < part.count; ++t)
      if (part.ids[t] < 0 || part.ids[t] >= vocabulary)
        throw Error("ids: " + std::to_string(part.ids[t]) + " is not in the vocabulary of " +
                    std::to_string(vocabulary));
  }
}

void Engine::forward(const std::vector<Part>& parts, float* logits, float* outputs) {
  check(parts);
  std::vector<int64_t> before;
  for (const Part& part : parts) before.push_back(part.sequence->position());
  try {
    append(parts, logits, outputs);
  } catch (...) {  // no memory: some layers have these tokens already
    for (std::size_t i = 0; i < parts.size(); ++i) parts[i].sequence->rewind(before[i]);
    throw;
  }
}

void Engine::append(const std::vector<Part>& parts, float* logits, float* outputs) {
  const int64_t vocabulary = model_.config.vocabulary, hidden = model_.config.hidden;
  std::vector<Span> spans;
  std::vector<int64_t> wanted;
  int64_t done = 0;  // tokens of a part
  for (std::size_t i = 0; i < parts.size();) {
    spans.clear();
    wanted.clear();
    float* first = outputs ? outputs + done * hidden : nullptr;
    for (int64_t rows = 0; i < parts.size() && rows < most_rows_;) {
      const Part& part = parts[i];
      const int64_t count = std::min(most_rows_ - rows, part.count - done);
      spans.push_back({part.sequence, part.ids + done, rows, count});
      for (int64_t t = std::max(done, part.count - part.wanted); t < done + count; ++t)
        wanted.push_back(rows + t - done);
      rows += count;
      done += count;
      if (done < part.count) continue;
      done = 0;
      ++i;
    }
    run_chunk(spans, first, parts[0].count * hidden);
    for (const Span& span : spans) span.sequence->advance(span.count);
    if (wanted.empty()) continue;
    predict(wanted, logits);
    logits += int64_t(wanted.size()) * vocabulary;
  }
}

// outputs: where the first layer's go, the next layer's `stride` floats behind; or null.
void Engine::run_chunk(const std::vector<Span>& spans, float* outputs, int64_t stride) {
  const Config& c = model_.config;
  const int64_t half = c.head_dim / 2, count = rows_of(spans);
  for (const Span& span : spans) {
    const int64_t first = span.sequence->position();
    for (int64_t t = 0; t < span.count; ++t) {
      const int64_t row = span.row + t;
      embed(model_.embedding, span.ids[t], x_.data() + row * c.hidden);
      rope_.angles(first + t, cosine_.data() + row * half, sine_.data() + row * half);
    }
    span.sequence->widths().begin(first, span.count);
  }
  for (int64_t layer = 0; layer < c.layers; ++layer) {
    high_ = high_rows(layer, spans);
    attention_block(layer, spans);
    mlp_block(layer, count);
    if (outputs)
      std::memcpy(outputs + layer * stride, x_.data(), count * c.hidden * sizeof(float));
  }
}

// Logits behind some rows, which are in order.
void Engine::predict(const std::vector<int64_t>& rows, float* logits) {
  const int64_t hidden = model_.config.hidden, count = int64_t(rows.size());
  for (int64_t i = 0; i < count; ++i)
    if (rows[i] != i)
      std::memcpy(x_.data() + i * hidden, x_.data() + rows[i] * hidden, hidden * sizeof(float));
  norm(model_.norm, count);
  const float* out = normed_.data();
  if (model_.turn.matrix.tiles) {
    project({{&model_.turn, x_.data()}}, out, count);
    out = x_.data();
  }
  project({{&model_.head, logits}}, out, count);
}

const uint8_t* Engine::high_rows(int64_t layer, const std::vector<Span>& spans) {
  if (spans.size() == 1)
    return spans[0].sequence->widths().high(layer, spans[0].sequence->position());
  for (const Span& span : spans) {
    const uint8_t* high = span.sequence->widths().high(layer, span.sequence->position());
    if (!high) return nullptr;
    std::memcpy(high_memory_.data() + span.row, high, span.count);
  }
  return high_memory_.data();
}

void Engine::attention_block(int64_t layer, const std::vector<Span>& spans) {
  const Block& block = model_.blocks[layer];
  const int64_t count = rows_of(spans);
  norm(block.attention_norm, count);
  project({{&block.query, q_.data()}, {&block.key, k_.data()}, {&block.value, v_.data()}},
          normed_.data(), count, high_);
  prepare_heads(layer, spans);
  const bool wanted = spans[0].sequence->widths().listens(layer + 1);
  float* to_first = wanted ? to_first_.data() : nullptr;
  attention_.attend(spans, {layer, q_.data(), mixed_.data(), to_first});
  if (wanted)
    for (const Span& span : spans)
      span.sequence->widths().decide(layer + 1, span.sequence->position(), span.count,
                                     to_first + span.row * model_.config.heads, *block.threshold);
  project({{&block.output, normed_.data()}}, mixed_.data(), count, high_);
  add_residual(count);
}

void Engine::mlp_block(int64_t layer, int64_t count) {
  const Block& block = model_.blocks[layer];
  const int64_t ffn = model_.config.ffn;
  norm(block.mlp_norm, count);
  project({{&block.gate, gate_.data()}, {&block.up, up_.data()}}, normed_.data(), count, high_);
  pool_.split(count * ffn, [&](int64_t begin, int64_t end) {
    isa_.swiglu(gate_.data() + begin, up_.data() + begin, end - begin, gate_.data() + begin);
  });
  project({{&block.down, normed_.data()}}, gate_.data(), count, high_);
  add_residual(count);
}

// Norms per head, rotary embedding, rotation; keys and values go into the cache.
void Engine::prepare_heads(int64_t layer, const std::vector<Span>& spans) {
  const Config& c = model_.config;
  const Block& block = model_.blocks[layer];
  const int64_t dim = c.head_dim, turned = c.rotate_keys ? rotation_block(dim) : 0;
  const int64_t count = rows_of(spans);
  const auto turn = [&](float* x, const float* weight, int64_t row) {
    if (weight) isa_.rms_norm(x, weight, c.epsilon, dim, x);
    Rope::turn(x, cosine_.data() + row * dim / 2, sine_.data() + row * dim / 2, dim);
    isa_.rotate(x, dim, turned);
  };
  const auto keep = [&](const Span& span, int64_t head) {
    std::vector<Stream>& streams = span.sequence->streams(layer);
    const Widths& widths = span.sequence->widths();
    const int64_t per_head = int64_t(streams.size()) / c.kv_heads;
    for (int64_t t = 0; t < span.count; ++t) {
      const int64_t at = ((span.row + t) * c.kv_heads + head) * dim;
      float* key = k_.data() + at;
      turn(key, block.key_norm, span.row + t);
      if (block.key_offset)
        for (int64_t d = 0; d < dim; ++d) key[d] -= block.key_offset[head * dim + d];
      const int64_t position = span.sequence->position() + t;
      const int64_t before = widths.kept_high(layer, position);
      const bool low = per_head > 1 && widths.kept_high(layer, position + 1) == before;
      streams[head * per_head + low].append(isa_, key, v_.data() + at);
    }
  };
  const auto heads = [&](int64_t begin, int64_t end) {
    for (int64_t row = 0; row < count; ++row)
      for (int64_t head = begin; head < std::min(end, c.heads); ++head)
        turn(q_.data() + (row * c.heads + head) * dim, block.query_norm, row);
    for (int64_t i = std::max(begin, c.heads); i < end; ++i)
      for (const Span& span : spans) keep(span, i - c.heads);
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
  if (count * hidden < kLeastShared) some(0, count);
  else pool_.split(count, some);
}

void Engine::add_residual(int64_t count) {
  float* x = x_.data();
  const float* y = normed_.data();
  const auto some = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) x[i] += y[i];
  };
  const int64_t values = count * model_.config.hidden;
  if (values < kLeastShared) some(0, values);
  else pool_.split(values, some);
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
