#include "engine.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "error.h"
#include "registry.h"

namespace edgeqat {
namespace {

constexpr int64_t kChunk = 240;         // tokens computed at once
constexpr int64_t kLeastShared = 8192;  // values that a thread alone walks over sooner

AttentionShape attention_shape(const Config& c) {
  const double factor = c.attention_factor != 0 ? c.attention_factor
                                                : 1.0 / std::sqrt(double(c.head_dim));
  return {c.heads, c.kv_heads, c.head_dim, float(factor), c.activation_bits};
}

int64_t rows_of(const std::vector<Span>& spans) { return spans.back().row + spans.back().count; }

}  // namespace

Engine::Engine(Model model, int threads, int64_t context)
    : isa_(active_isa()),
      model_(std::move(model)),
      pool_(threads > 0 ? threads : physical_cores()),
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
  for (const RopeSpec& spec : c.ropes) {
    ropes_.emplace_back(spec, c.head_dim, c.family.adjacent);
    cosine_.emplace_back(most_rows_ * ropes_.back().pairs());
    sine_.emplace_back(most_rows_ * ropes_.back().pairs());
  }
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
  const int64_t count = rows_of(spans);
  for (const Span& span : spans) {
    const int64_t first = span.sequence->position();
    for (int64_t t = 0; t < span.count; ++t) {
      const int64_t row = span.row + t;
      float* x = x_.data() + row * c.hidden;
      embed(model_.embedding, span.ids[t], x);
      if (c.embedding_factor != 1)
        for (int64_t i = 0; i < c.hidden; ++i) x[i] *= c.embedding_factor;
      for (std::size_t i = 0; i < ropes_.size(); ++i) {
        const int64_t at = row * ropes_[i].pairs();
        ropes_[i].angles(first + t, cosine_[i].data() + at, sine_[i].data() + at);
      }
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
  const float* out = read(model_.norm, count);
  if (model_.turn.matrix.tiles) {
    project({{&model_.turn, x_.data()}}, out, count);
    out = x_.data();
  }
  project({{&model_.head, logits}}, out, count);
  const float divisor = model_.config.logits_divisor;
  if (divisor == 1) return;
  pool_.split(count * model_.config.vocabulary, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) logits[i] /= divisor;
  });
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
  const Config& c = model_.config;
  const Block& block = model_.blocks[layer];
  const int64_t count = rows_of(spans);
  project({{&block.query, q_.data()}, {&block.key, k_.data()}, {&block.value, v_.data()}},
          read(block.attention_norm, count), count, high_);
  if (c.family.whole_head_norms) {
    rms_norm(q_.data(), block.query_norm, c.heads * c.head_dim, count, q_.data());
    rms_norm(k_.data(), block.key_norm, c.kv_heads * c.head_dim, count, k_.data());
  }
  prepare_heads(layer, spans);
  const bool wanted = spans[0].sequence->widths().listens(layer + 1);
  float* to_first = wanted ? to_first_.data() : nullptr;
  attention_.attend(spans, {layer, q_.data(), mixed_.data(), to_first, c.window_of(layer)});
  if (wanted)
    for (const Span& span : spans)
      span.sequence->widths().decide(layer + 1, span.sequence->position(), span.count,
                                     to_first + span.row * c.heads, *block.threshold);
  project({{&block.output, normed_.data()}}, mixed_.data(), count, high_);
  add_residual(block.attention_end, count);
}

void Engine::mlp_block(int64_t layer, int64_t count) {
  const Block& block = model_.blocks[layer];
  const float* x = read(block.mlp_norm, count);
  if (model_.config.family.gate.empty()) project({{&block.up, gate_.data()}}, x, count, high_);
  else project({{&block.gate, gate_.data()}, {&block.up, up_.data()}}, x, count, high_);
  activate(count * model_.config.ffn);
  project({{&block.down, normed_.data()}}, gate_.data(), count, high_);
  add_residual(block.mlp_end, count);
}

// gate_ becomes act(gate_) * up_, or act(gate_) where there is no gate.
void Engine::activate(int64_t values) {
  float *gate = gate_.data(), *up = up_.data();
  pool_.split(values, [&](int64_t begin, int64_t end) {
    switch (model_.config.activation) {
      case Activation::silu:
        return isa_.swiglu(gate + begin, up + begin, end - begin, gate + begin);
      case Activation::gelu:
        return isa_.geglu(gate + begin, up + begin, end - begin, gate + begin);
      case Activation::squared_relu:
        for (int64_t i = begin; i < end; ++i) {
          const float x = std::max(gate[i], 0.0f);
          gate[i] = x * x;
        }
    }
  });
}

// Norms per head, rotary embedding, rotation; keys and values go into the cache.
void Engine::prepare_heads(int64_t layer, const std::vector<Span>& spans) {
  const Config& c = model_.config;
  const Block& block = model_.blocks[layer];
  const int64_t dim = c.head_dim, turned = c.rotate_keys ? rotation_block(dim) : 0;
  const int64_t count = rows_of(spans);
  const int number = c.rope_of(layer);
  const Rope* rope = number < 0 ? nullptr : &ropes_[std::size_t(number)];
  const bool late = c.family.norms_behind_rope, whole = c.family.whole_head_norms;
  const auto turn = [&](float* x, const float* weight, int64_t row) {
    const bool own = weight && !whole;
    if (own && !late) isa_.rms_norm(x, weight, c.epsilon, dim, x);
    if (rope) {
      const int64_t at = row * rope->pairs();
      rope->turn(x, cosine_[std::size_t(number)].data() + at,
                 sine_[std::size_t(number)].data() + at);
    }
    if (own && late) isa_.rms_norm(x, weight, c.epsilon, dim, x);
    isa_.rotate(x, dim, turned);
  };
  const auto turn_query = [&](const Span& span, int64_t row, int64_t head) {
    float* x = q_.data() + (row * c.heads + head) * dim;
    turn(x, block.query_norm, row);
    const float factor =
        rope ? rope->query_factor(span.sequence->position() + row - span.row) : 1.0f;
    if (factor != 1)
      for (int64_t i = 0; i < dim; ++i) x[i] *= factor;
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
    for (const Span& span : spans)
      for (int64_t row = span.row; row < span.row + span.count; ++row)
        for (int64_t head = begin; head < std::min(end, c.heads); ++head)
          turn_query(span, row, head);
    for (int64_t i = std::max(begin, c.heads); i < end; ++i)
      for (const Span& span : spans) keep(span, i - c.heads);
  };
  if (count == 1) heads(0, c.heads + c.kv_heads);  // too little to share
  else pool_.split(c.heads + c.kv_heads, heads);
}

const float* Engine::read(const float* weight, int64_t count) {
  if (!weight) return x_.data();
  rms_norm(x_.data(), weight, model_.config.hidden, count, normed_.data());
  return normed_.data();
}

void Engine::rms_norm(const float* x, const float* weight, int64_t width, int64_t count,
                      float* out) {
  const auto some = [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      isa_.rms_norm(x + t * width, weight, model_.config.epsilon, width, out + t * width);
  };
  if (count * width < kLeastShared) some(0, count);
  else pool_.split(count, some);
}

void Engine::add_residual(const float* weight, int64_t count) {
  if (weight)
    rms_norm(normed_.data(), weight, model_.config.hidden, count, normed_.data());
  float* x = x_.data();
  const float* y = normed_.data();
  const float factor = model_.config.residual_factor;
  const auto some = [&](int64_t begin, int64_t end) {
    if (factor == 1)
      for (int64_t i = begin; i < end; ++i) x[i] += y[i];
    else
      for (int64_t i = begin; i < end; ++i) x[i] += y[i] * factor;
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
