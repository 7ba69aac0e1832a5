// config.json of a packed folder: the shape of the model and the record of every packed layer.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "family.h"
#include "rope_config.h"

namespace edgeqat {

struct LayerSpec {
  int64_t rows = 0, columns = 0;
  int bits = 0;
  int64_t group_size = 0;  // `columns` where a row has one scale
  int input_bits = 16;     // 16: float
  int64_t rotation = 0;
  bool bias = false;
  std::string tied_to;

  int64_t groups() const { return (columns + group_size - 1) / group_size; }
};

// Tokens of two widths (quant.adaptive); no rule: all tokens alike.
struct AdaptiveSpec {
  std::string rule;  // importance, reversed, random, layers
  double share = 0;

  bool measured() const { return rule == "importance" || rule == "reversed"; }
};

enum class Activation { silu, gelu, squared_relu };

struct Config {
  Family family;
  Activation activation = Activation::silu;
  int64_t hidden = 0, ffn = 0, layers = 0, heads = 0, kv_heads = 0, head_dim = 0, vocabulary = 0;
  int64_t positions = 0;  // longest sequence
  float epsilon = 0;
  bool tied = false, attention_bias = false, output_bias = false, mlp_bias = false;
  float embedding_factor = 1, residual_factor = 1, logits_divisor = 1;
  double attention_factor = 0;   // of q k^T; 0: 1 / sqrt(head_dim)
  std::vector<RopeSpec> ropes;   // none, one, or one by kind of layer
  std::vector<int> layer_ropes;  // which of them, -1: none; empty: all layers have the first one
  std::vector<int64_t> windows;  // of each layer, the newest tokens that it sees, 0: all; or empty
  std::vector<int64_t> stop;  // ids that end a text

  std::string scheme;
  int activation_bits = 16, kv_bits = 16;
  int64_t sinks = 4;
  bool rotate_keys = false, key_offset = false;
  bool turned_head = false;  // a matrix between last norm and tied head: rotated residual stream
  AdaptiveSpec adaptive;
  std::map<std::string, LayerSpec> packed;  // by name; a layer that is absent is float
  std::vector<std::string> skip;            // glob patterns of layers that stay float altogether

  int rope_of(int64_t layer) const {
    return layer_ropes.empty() ? int(ropes.size()) - 1 : layer_ropes[std::size_t(layer)];
  }
  int64_t window_of(int64_t layer) const {
    return windows.empty() ? 0 : windows[std::size_t(layer)];
  }

  // Refuses a float layer whose input is quantized: those run in torch only.
  void check_float(const std::string& layer) const;

  // Reads and checks config.json; an Unsupported says what the engine does not run.
  static Config parse(const std::string& text);

  // The stops of generation_config.json instead, where it names any.
  void read_generation(const std::string& text);
};

// Bits of a part ("w", "a", "kv") of a scheme such as w4a8kv4.
int bits_of_part(const std::string& scheme, const std::string& part);

}  // namespace edgeqat
