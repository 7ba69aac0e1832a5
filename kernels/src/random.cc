// Random weights of a named shape: what benchmarks run on when nobody has trained that shape.

#include <algorithm>
#include <cstring>

#include "error.h"
#include "model.h"
#include "tile.h"

namespace edgeqat {
namespace {

constexpr int kHeadBits = 8;
constexpr int64_t kGroup = 128, kRotation = 32, kSinks = 4;  // the recipe's defaults

struct Shape {
  const char* name;
  int64_t vocabulary, hidden, layers, heads, kv_heads, ffn;
  bool tied;
};

constexpr Shape kShapes[] = {  // edgeqat/runtime/shape.py has the same
    {"tinyllama-1.1b", 32000, 2048, 22, 32, 4, 5632, false},
    {"llama-8m", 8192, 256, 8, 4, 2, 688, true},
    {"llama-58m", 16000, 512, 16, 8, 8, 1024, false},
    {"smollm-135m", 49152, 576, 30, 9, 3, 1536, true},
};

class Maker {
 public:
  Maker(Model& model, bool half) : model_(model), half_(half) {}

  // A layer of a block at the scheme's width, or (bits 8) the head or the embedding.
  Linear linear(int64_t rows, int64_t columns, int bits, bool head = false) {
    const int64_t tile_rows = (rows + kRows - 1) / kRows;
    Linear made;
    Matrix& m = made.matrix;
    m.bits = half_ ? kHalfBits : bits;
    m.rows = rows;
    m.columns = m.group_size = columns;
    if (!half_ && !head && columns > kGroup) m.group_size = kGroup;
    m.groups = (columns + m.group_size - 1) / m.group_size;
    m.tile_row_bytes = tiles_of(columns, m.bits) * tile_bytes(m.bits);
    uint8_t* tiles = bytes(tile_rows * m.tile_row_bytes);
    for (int64_t i = 0; i < tile_rows * m.tile_row_bytes; i += 8) {
      uint64_t word = next();
      if (half_) word = (word & 0x83ff83ff83ff83ff) | 0x2000200020002000;  // 0.008 to 0.016
      std::memcpy(tiles + i, &word, 8);
    }
    m.tiles = tiles;
    if (!half_) {
      uint16_t* scales = reinterpret_cast<uint16_t*>(bytes(tile_rows * m.groups * kRows * 2));
      for (int64_t i = 0; i < tile_rows * m.groups * kRows; ++i)
        scales[i] = to_half(0.04f / float(1 << bits));
      m.scales = scales;
    }
    made.input = {columns, m.group_size, m.groups, 0, kHalfBits};
    if (half_) return made;
    made.input.bits = head ? 8 : model_.config.activation_bits;
    if (!head) made.input.rotation = std::min(columns & -columns, kRotation);
    return made;
  }

  const float* ones(int64_t count) {
    float* values = reinterpret_cast<float*>(bytes(count * 4));
    for (int64_t i = 0; i < count; ++i) values[i] = 1;
    return values;
  }

  const float* zeros(int64_t count) { return reinterpret_cast<float*>(bytes(count * 4)); }

 private:
  uint8_t* bytes(int64_t count) {
    model_.memory.emplace_back(count);
    return model_.memory.back().data();
  }

  uint64_t next() {  // xorshift64: the weights only have to be different
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    return state_ ^= state_ << 17;
  }

  Model& model_;
  bool half_;
  uint64_t state_ = 0x9e3779b97f4a7c15;
};

}  // namespace

Model Model::random(const std::string& name, const std::string& scheme, bool half) {
  const Shape* shape = nullptr;
  std::string known;
  for (const Shape& each : kShapes) {
    if (name == each.name) shape = &each;
    known += std::string(known.empty() ? "" : ", ") + each.name;
  }
  if (!shape) throw Error("shape: '" + name + "' is unknown; known: " + known);
  Model model;
  Config& c = model.config;
  c.family = *family_of("llama");
  c.hidden = shape->hidden;
  c.ffn = shape->ffn;
  c.layers = shape->layers;
  c.heads = shape->heads;
  c.kv_heads = shape->kv_heads;
  c.head_dim = shape->hidden / shape->heads;
  c.vocabulary = shape->vocabulary;
  c.positions = 4096;
  c.ropes.emplace_back();
  c.epsilon = 1e-5f;
  c.tied = shape->tied;
  c.scheme = half ? "w16a16kv16" : scheme;
  const int bits = bits_of_part(c.scheme, "w");
  c.activation_bits = bits_of_part(c.scheme, "a");
  c.kv_bits = bits_of_part(c.scheme, "kv");
  if (!half && (bits > 8 || c.activation_bits > 8))
    throw Unsupported("scheme: '" + scheme + "' (float weights or activations) runs in torch only");
  if (!half) c.sinks = kSinks;
  c.rotate_keys = c.key_offset = c.kv_bits < kHalfBits;
  Maker maker(model, half);
  const int64_t keys = c.kv_heads * c.head_dim;
  for (int64_t i = 0; i < c.layers; ++i) {
    Block block;
    block.attention_norm = maker.ones(c.hidden);
    block.mlp_norm = maker.ones(c.hidden);
    if (c.key_offset) block.key_offset = maker.zeros(keys);
    block.query = maker.linear(c.hidden, c.hidden, bits);
    block.key = maker.linear(keys, c.hidden, bits);
    block.value = maker.linear(keys, c.hidden, bits);
    block.output = maker.linear(c.hidden, c.hidden, bits);
    block.gate = maker.linear(c.ffn, c.hidden, bits);
    block.up = maker.linear(c.ffn, c.hidden, bits);
    block.down = maker.linear(c.hidden, c.ffn, bits);
    model.blocks.push_back(block);
  }
  model.norm = maker.ones(c.hidden);
  model.head = maker.linear(c.vocabulary, c.hidden, kHeadBits, true);
  model.embedding =
      c.tied ? model.head.matrix : maker.linear(c.vocabulary, c.hidden, kHeadBits, true).matrix;
  return model;
}

}  // namespace edgeqat
