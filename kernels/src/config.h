// config.json of a packed folder: the shape of the model and the record of every packed layer.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

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

struct RopeSpec {
  std::string type = "default";
  double theta = 10000, factor = 1;
  double low_frequency = 1, high_frequency = 4;  // llama3
  double original_positions = 8192;              // llama3
};

// Tokens of two widths (quant.adaptive); no rule: all tokens alike.
struct AdaptiveSpec {
  std::string rule;  // importance, reversed, random, layers
  double share = 0;

  bool measured() const { return rule == "importance" || rule == "reversed"; }
};

struct Config {
  std::string family;  // llama, mistral, qwen2, qwen3
  int64_t hidden = 0, ffn = 0, layers = 0, heads = 0, kv_heads = 0, head_dim = 0, vocabulary = 0;
  int64_t positions = 0;  // longest sequence, also bounded by a sliding window
  float epsilon = 0;
  bool tied = false, attention_bias = false, output_bias = false, mlp_bias = false;
  bool head_norms = false;  // RMSNorm of q and k per head (Qwen3)
  RopeSpec rope;
  std::vector<int64_t> stop;  // ids that end a text

  std::string scheme;
  int activation_bits = 16, kv_bits = 16;
  int64_t sinks = 4;
  bool rotate_keys = false, key_offset = false;
  bool turned_head = false;  // a matrix between last norm and tied head: rotated residual stream
  AdaptiveSpec adaptive;
  std::map<std::string, LayerSpec> packed;  // by name; a layer that is absent is float
  std::vector<std::string> skip;            // glob patterns of layers that stay float altogether

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
