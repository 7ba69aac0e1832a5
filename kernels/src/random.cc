// Random weights of a named shape: what benchmarks run on when nobody has trained that shape.

#include <cstring>

#include "error.h"
#include "model.h"
#include "tile.h"

namespace edgeqat {
namespace {

constexpr int kWeightBits = 4, kHeadBits = 8, kGroup = 128;

struct Shape {
  const char* name;
  int64_t vocabulary, hidden, layers, heads, kv_heads, ffn;
};

constexpr Shape kShapes[] = {
    {"tinyllama-1.1b", 32000, 2048, 22, 32, 4, 5632},
    {"llama-58m", 16000, 512, 16, 8, 8, 1024},
    {"smollm-135m", 49152, 576, 30, 9, 3, 1536},
};

class Maker {
 public:
  Maker(Model& model, bool half) : model_(model), half_(half) {}

  Linear linear(int64_t rows, int64_t columns, int bits) {
    const int64_t tile_rows = (rows + kRows - 1) / kRows;
    Linear made;
    Matrix& m = made.matrix;
    m.bits = half_ ? kHalfBits : bits;
    m.rows = rows;
    m.columns = m.group_size = columns;
    if (!half_ && bits == kWeightBits && columns > kGroup) m.group_size = kGroup;
    m.groups = (columns + m.group_size - 1) / m.group_size;
    m.tile_row_bytes = tiles_of(columns, m.bits) * tile_bytes(m.bits);
    uint8_t* tiles = bytes(tile_rows * m.tile_row_bytes);
    for (int64_t i = 0; i < tile_rows * m.tile_row_bytes; i += 8) {
      uint64_t word = next();
      if (half_) word = (word & 0x8fff8fff8fff8fff) | 0x2000200020002000;  // 0.008 to 0.016
      std::memcpy(tiles + i, &word, 8);
    }
    m.tiles = tiles;
    if (!half_) {
      uint16_t* scales = reinterpret_cast<uint16_t*>(bytes(tile_rows * m.groups * kRows * 2));
      for (int64_t i = 0; i < tile_rows * m.groups * kRows; ++i)
        scales[i] = to_half(bits == kHeadBits ? 2e-4f : 4e-3f);
      m.scales = scales;
    }
    made.input = {columns, m.group_size, m.groups, 0, half_ ? kHalfBits : 8};
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

Model Model::random(const std::string& name, bool half) {
  const Shape* shape = nullptr;
  std::string known;
  for (const Shape& each : kShapes) {
    if (name == each.name) shape = &each;
    known += std::string(known.empty() ? "" : ", ") + each.name;
  }
  if (!shape) throw Error("shape: '" + name + "' is unknown; known: " + known);
  Model model;
  Config& c = model.config;
  c.family = "llama";
  c.hidden = shape->hidden;
  c.ffn = shape->ffn;
  c.layers = shape->layers;
  c.heads = shape->heads;
  c.kv_heads = shape->kv_heads;
  c.head_dim = shape->hidden / shape->heads;
  c.vocabulary = shape->vocabulary;
  c.positions = 4096;
  c.epsilon = 1e-5f;
  c.tied = true;
  c.scheme = half ? "w16a16kv16" : "w4a8kv4";
  c.activation_bits = half ? kHalfBits : 8;
  c.kv_bits = half ? kHalfBits : 4;
  c.rotate_keys = c.key_offset = !half;
  Maker maker(model, half);
  const int64_t keys = c.kv_heads * c.head_dim;
  for (int64_t i = 0; i < c.layers; ++i) {
    Block block;
    block.attention_norm = maker.ones(c.hidden);
    block.mlp_norm = maker.ones(c.hidden);
    if (!half) block.key_offset = maker.zeros(keys);
    block.query = maker.linear(c.hidden, c.hidden, kWeightBits);
    block.key = maker.linear(keys, c.hidden, kWeightBits);
    block.value = maker.linear(keys, c.hidden, kWeightBits);
    block.output = maker.linear(c.hidden, c.hidden, kWeightBits);
    block.gate = maker.linear(c.ffn, c.hidden, kWeightBits);
    block.up = maker.linear(c.ffn, c.hidden, kWeightBits);
    block.down = maker.linear(c.hidden, c.ffn, kWeightBits);
    model.blocks.push_back(block);
  }
  model.norm = maker.ones(c.hidden);
  model.head = maker.linear(c.vocabulary, c.hidden, kHeadBits);
  model.embedding = model.head.matrix;
  return model;
}

}  // namespace edgeqat
