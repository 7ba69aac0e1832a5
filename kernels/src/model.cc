#include "model.h"

#include <algorithm>
#include <cmath>

#include "error.h"
#include "tile.h"

namespace edgeqat {
namespace {

constexpr int64_t kMostConfig = int64_t(1) << 24;
constexpr float kLargestHalf = 65504.0f, kSmallestHalf = 0x1p-10f;  // of a float matrix as fp16

// Binds the tensors of a folder, layer by layer.
class Binder {
 public:
  Binder(Model& model, bool half) : model_(model), half_(half) {}

  const float* floats(const std::string& name, const std::vector<int64_t>& shape) {
    return reinterpret_cast<const float*>(model_.file->get(name, "F32", shape).data);
  }

  // The gains of a norm; null where its name is empty.
  const float* gains(const std::string& layer, const std::string& name, int64_t size) {
    if (name.empty()) return nullptr;
    const float* weight = floats(layer + name + ".weight", {size});
    const float gain = model_.config.family.gain;
    if (gain == 0) return weight;
    model_.memory.emplace_back(size * int64_t(sizeof(float)));
    float* made = reinterpret_cast<float*>(model_.memory.back().data());
    for (int64_t i = 0; i < size; ++i) made[i] = gain + weight[i];
    return made;
  }

  // Rows first .. first + count - 1 of a layer.
  Linear rows(const Linear& whole, int64_t first, int64_t count, const std::string& name) {
    if (first % kRows)
      throw Unsupported(name + ": its parts do not begin at multiples of 16 rows; it runs in torch "
                        "only");
    Linear made = whole;
    made.matrix.tiles += first / kRows * whole.matrix.tile_row_bytes;
    if (whole.matrix.scales) made.matrix.scales += first * whole.matrix.groups;
    made.matrix.rows = count;
    if (whole.bias) made.bias += first;
    return made;
  }

  Matrix embedding() {
    const Config& config = model_.config;
    return matrix("model.embed_tokens", config.vocabulary, config.hidden, nullptr);
  }

  Linear linear(const std::string& name, int64_t rows, int64_t columns, bool bias) {
    Linear made;
    const LayerSpec* spec = nullptr;
    if (!model_.config.packed.count(name)) model_.config.check_float(name);
    made.matrix = matrix(name, rows, columns, &spec);
    made.input = {columns, made.matrix.group_size, made.matrix.groups, 0, kHalfBits};
    if (spec && !half_) made.input.bits = spec->input_bits;
    if (spec) made.input.rotation = spec->rotation;
    check_input(made, name);
    if (spec && spec->bias != bias) throw Error(name + ": its bias is not the model's");
    if (bias) made.bias = floats(name + ".bias", {rows});
    return made;
  }

  // The matrix between the last norm and a tied head.
  Linear turn(const std::string& name, int64_t size) {
    Linear made;
    made.matrix = from_float(name, size, size);
    made.input = {size, made.matrix.group_size, made.matrix.groups, 0, kHalfBits};
    return made;
  }

  // The head, which may be the embedding itself.
  Linear head() {
    const Config& config = model_.config;
    const auto found = config.packed.find("lm_head");
    const bool own = !config.tied || model_.file->has("lm_head.weight");
    if (found == config.packed.end() ? own : found->second.tied_to.empty())
      return linear("lm_head", config.vocabulary, config.hidden, false);
    Linear made;
    made.matrix = model_.embedding;
    made.input = {config.hidden, made.matrix.group_size, made.matrix.groups, 0, kHalfBits};
    if (found == config.packed.end()) {
      config.check_float("lm_head");
      check_input(made, "lm_head");
      return made;
    }
    const LayerSpec& spec = found->second;
    if (spec.tied_to != "model.embed_tokens" || spec.rotation || spec.rows != config.vocabulary ||
        spec.columns != config.hidden || !config.packed.count(spec.tied_to))
      throw Error("lm_head: tied_to '" + spec.tied_to + "' does not fit; copy the folder again");
    if (!half_) made.input.bits = spec.input_bits;
    check_input(made, "lm_head");
    return made;
  }

 private:
  // A packed matrix multiplies codes: it cannot take an input that stays in float.
  void check_input(const Linear& linear, const std::string& name) {
    if (linear.matrix.bits != kHalfBits && linear.input.bits == kHalfBits)
      throw Unsupported("scheme: float activations with packed weights ('" + name +
                        "') run in torch only");
  }

  Matrix matrix(const std::string& name, int64_t rows, int64_t columns, const LayerSpec** used) {
    const auto found = model_.config.packed.find(name);
    if (found == model_.config.packed.end()) return from_float(name + ".weight", rows, columns);
    const LayerSpec& spec = found->second;
    if (spec.rows != rows || spec.columns != columns)
      throw Error(name + ": its recorded shape is not the model's; copy the folder again");
    if (used) *used = &spec;
    Matrix made;
    const int64_t tile_rows = (rows + kRows - 1) / kRows, tiles = tiles_of(columns, spec.bits);
    made.tiles = model_.file->get(name + ".weight", "U8",
                                  {tile_rows, tiles, tile_bytes(spec.bits)}).data;
    made.scales = reinterpret_cast<const uint16_t*>(
        model_.file->get(name + ".weight_scale", "F16", {tile_rows, spec.groups(), kRows}).data);
    made.rows = rows;
    made.columns = columns;
    made.group_size = spec.group_size;
    made.groups = spec.groups();
    made.tile_row_bytes = tiles * tile_bytes(spec.bits);
    made.bits = spec.bits;
    return half_ ? expand(made) : made;
  }

  Matrix empty_half(int64_t rows, int64_t columns) {
    const int64_t tile_rows = (rows + kRows - 1) / kRows;
    model_.memory.emplace_back(tile_rows * columns * tile_bytes(kHalfBits));
    Matrix made;
    made.tiles = model_.memory.back().data();
    made.rows = rows;
    made.columns = made.group_size = columns;
    made.tile_row_bytes = columns * tile_bytes(kHalfBits);
    made.bits = kHalfBits;
    return made;
  }

  void set_half(Matrix& matrix, int64_t row, int64_t column, float value) {
    uint8_t* tile = const_cast<uint8_t*>(matrix.tiles) + row / kRows * matrix.tile_row_bytes;
    reinterpret_cast<uint16_t*>(tile)[column * kRows + row % kRows] = to_half(value);
  }

  Matrix from_float(const std::string& name, int64_t rows, int64_t columns) {
    const float* values = floats(name, {rows, columns});
    Matrix made = empty_half(rows, columns);
    float largest = 0;
    for (int64_t i = 0; i < rows * columns; ++i) largest = std::max(largest, std::fabs(values[i]));
    if (largest > kLargestHalf || (largest > 0 && largest < kSmallestHalf))
      throw Unsupported("weights: float16 cannot hold those of '" + name + "', which are too " +
                        (largest > 1 ? "large" : "small") + "; they run in torch only");
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t k = 0; k < columns; ++k) set_half(made, row, k, values[row * columns + k]);
    return made;
  }

  Matrix expand(const Matrix& packed) {
    Matrix made = empty_half(packed.rows, packed.columns);
    std::vector<float> values(packed.columns);
    for (int64_t row = 0; row < packed.rows; ++row) {
      embed(packed, row, values.data());
      for (int64_t k = 0; k < packed.columns; ++k) set_half(made, row, k, values[k]);
    }
    return made;
  }

  Model& model_;
  bool half_;
};

int64_t bytes(const Matrix& m) {
  return m.tile_rows() * (m.tile_row_bytes + (m.scales ? m.groups * kRows * 2 : 0));
}

void bind(Model& model, bool half) {
  Binder binder(model, half);
  const Config& c = model.config;
  const int64_t queries = c.heads * c.head_dim, keys = c.kv_heads * c.head_dim;
  model.embedding = binder.embedding();
  const Family& f = c.family;
  const bool whole = f.whole_head_norms;
  model.norm = binder.gains("model.", "norm", c.hidden);
  if (c.turned_head) model.turn = binder.turn("model.norm.rotation", c.hidden);
  for (int64_t i = 0; i < c.layers; ++i) {
    const std::string name = "model.layers." + std::to_string(i) + ".";
    const std::string attention = name + "self_attn.";
    Block block;
    block.attention_norm = binder.gains(name, f.attention_norm, c.hidden);
    block.attention_end = binder.gains(name, f.attention_end, c.hidden);
    block.mlp_norm = binder.gains(name, f.mlp_norm, c.hidden);
    block.mlp_end = binder.gains(name, f.mlp_end, c.hidden);
    block.query_norm = binder.gains(attention, f.query_norm, whole ? queries : c.head_dim);
    block.key_norm = binder.gains(attention, f.key_norm, whole ? keys : c.head_dim);
    if (f.heads.empty()) {
      block.query = binder.linear(attention + "q_proj", queries, c.hidden, c.attention_bias);
      block.key = binder.linear(attention + "k_proj", keys, c.hidden, c.attention_bias);
      block.value = binder.linear(attention + "v_proj", keys, c.hidden, c.attention_bias);
    } else {
      const std::string heads = attention + f.heads;
      const Linear fused =
          binder.linear(heads, queries + 2 * keys, c.hidden, c.attention_bias);
      block.query = binder.rows(fused, 0, queries, heads);
      block.key = binder.rows(fused, queries, keys, heads);
      block.value = binder.rows(fused, queries + keys, keys, heads);
    }
    block.output = binder.linear(attention + "o_proj", c.hidden, queries, c.output_bias);
    if (f.gate_and_up.empty()) {
      if (!f.gate.empty())
        block.gate = binder.linear(name + f.gate, c.ffn, c.hidden, c.mlp_bias);
      block.up = binder.linear(name + f.up, c.ffn, c.hidden, c.mlp_bias);
    } else {
      const Linear fused =
          binder.linear(name + f.gate_and_up, 2 * c.ffn, c.hidden, c.mlp_bias);
      block.gate = binder.rows(fused, 0, c.ffn, name + f.gate_and_up);
      block.up = binder.rows(fused, c.ffn, c.ffn, name + f.gate_and_up);
    }
    block.down = binder.linear(name + f.down, c.hidden, c.ffn, c.mlp_bias);
    if (c.key_offset && !half)
      block.key_offset =
          binder.floats(attention + "attention_quantizer.key.offset", {c.kv_heads, c.head_dim});
    if (c.adaptive.measured() && i + 1 < c.layers && !half)
      block.threshold = binder.floats(attention + "attention_quantizer.importance.threshold", {1});
    model.blocks.push_back(block);
  }
  model.head = binder.head();
}

}  // namespace

Model Model::open(const std::string& folder, bool half) {
  Model model;
  model.config = Config::parse(read_text(folder + "/config.json", kMostConfig));
  if (const std::string path = folder + "/generation_config.json"; is_file(path))
    model.config.read_generation(read_text(path, kMostConfig));
  model.file = std::make_unique<TensorFile>(folder + "/model.safetensors");
  bind(model, half);
  if (half) {
    model.config.activation_bits = model.config.kv_bits = kHalfBits;
    model.config.rotate_keys = model.config.key_offset = false;
    model.config.adaptive = {};
  }
  return model;
}

int64_t Model::matrix_bytes() const {
  int64_t total = bytes(head.matrix) + bytes(turn.matrix);
  for (const Block& b : blocks)
    for (const Linear* layer : {&b.query, &b.key, &b.value, &b.output, &b.gate, &b.up, &b.down})
      total += bytes(layer->matrix);
  return total;
}

int64_t Model::embedding_bytes() const {
  return embedding.tiles == head.matrix.tiles ? 0 : bytes(embedding);
}

void embed(const Matrix& embedding, int64_t id, float* out) {
  const int64_t tile_row = id / kRows, row = id % kRows;
  const uint8_t* tiles = embedding.tiles + tile_row * embedding.tile_row_bytes;
  if (embedding.bits == kHalfBits) {
    const uint16_t* half = reinterpret_cast<const uint16_t*>(tiles);
    for (int64_t k = 0; k < embedding.columns; ++k) out[k] = from_half(half[k * kRows + row]);
    return;
  }
  const float offset = half_step(embedding.bits) ? 0.5f : 0.0f;
  for (int64_t k = 0; k < embedding.columns; ++k) {
    const int64_t g = k / embedding.group_size;
    const uint16_t scale = embedding.scales[(tile_row * embedding.groups + g) * kRows + row];
    out[k] = (float(get_code(tiles, embedding.bits, row, k)) + offset) * from_half(scale);
  }
}

}  // namespace edgeqat
