#include "config.h"

#include <fnmatch.h>

#include <set>

#include "error.h"
#include "json.h"
#include "tile.h"

namespace edgeqat {
namespace {

constexpr int64_t kMost = int64_t(1) << 24;      // of any size in a config
constexpr int64_t kMostColumns = 65536;          // int32 holds 65536 * 128 * 255
constexpr int64_t kVersion = 1, kAdaptiveVersion = 2, kRotatedVersion = 3;

LayerSpec layer_of(const std::string& name, const Json& entry) {
  LayerSpec spec;
  const auto& shape = entry.at("shape").array();
  if (shape.size() != 2) throw Error(name + ": its shape needs two numbers");
  spec.rows = shape[0].integer(1, kMost);
  spec.columns = shape[1].integer(1, kMostColumns);
  spec.bits = int(entry.at("bits").integer(1, 8));
  if (!tile_inputs(spec.bits)) throw Error(name + ": " + std::to_string(spec.bits) + " bits?");
  spec.group_size = spec.columns;
  if (const Json* size = entry.find("group_size")) {
    const int64_t given = size->integer(1, kMost);
    if (given % 32 && given < spec.columns) throw Error(name + ": group_size is no multiple of 32");
    if (given < spec.columns) spec.group_size = given;
  }
  spec.input_bits = int(entry.at("input_bits").integer(1, 16));
  spec.bias = entry.at("bias").boolean();
  if (const Json* rotation = entry.find("rotation")) spec.rotation = rotation->integer(0, 128);
  if (spec.rotation & (spec.rotation - 1) || (spec.rotation && spec.columns % spec.rotation))
    throw Error(name + ": rotation " + std::to_string(spec.rotation) + " does not fit its input");
  if (const Json* tied = entry.find("tied_to")) spec.tied_to = tied->string();
  if (entry.at("kind").string() == "embedding") return spec;
  if (entry.at("input_mode").string() != "dynamic" && spec.input_bits < 16)
    throw Unsupported("input_mode: activations of '" + name +
                      "' that are not dynamic run in torch only");
  if (spec.input_bits > 8)
    throw Unsupported("scheme: float activations with packed weights ('" + name +
                      "') run in torch only");
  return spec;
}

RopeSpec rope_of(const Json& config) {
  RopeSpec rope;
  const Json& values = config.at("rope_parameters");
  rope.theta = values.at("rope_theta").number();
  if (const Json* type = values.find("rope_type")) rope.type = type->string();
  const Json* partial = values.find("partial_rotary_factor");
  if (partial && partial->number() != 1)
    throw Unsupported("rope_parameters: a partial rotary factor runs in torch only");
  if (rope.type == "default") return rope;
  if (rope.type != "linear" && rope.type != "llama3")
    throw Unsupported("rope_parameters: type '" + rope.type + "' runs in torch only");
  rope.factor = values.at("factor").number();
  if (rope.type == "llama3") {
    rope.low_frequency = values.at("low_freq_factor").number();
    rope.high_frequency = values.at("high_freq_factor").number();
    rope.original_positions = values.at("original_max_position_embeddings").number();
  }
  if (!(rope.factor > 0 && rope.low_frequency > 0 && rope.high_frequency > rope.low_frequency &&
        rope.original_positions > 0))
    throw Error("rope_parameters: their factors are out of range; copy the folder again");
  return rope;
}

bool flag(const Json& config, const char* key) {
  const Json* value = config.find(key);
  return value && value->boolean();
}

bool slides(const Json& config) {
  if (!config.find("sliding_window")) return false;
  if (const Json* types = config.find("layer_types")) {
    bool found = false;
    for (const Json& type : types->array()) found |= type.string() != "full_attention";
    return found;
  }
  const Json* use = config.find("use_sliding_window");
  return !use || use->boolean();
}

// A sliding window equals full attention as long as the sequence fits into it.
int64_t longest(const Json& config) {
  const int64_t positions = config.at("max_position_embeddings").integer(1, kMost);
  if (!slides(config)) return positions;
  return std::min(positions, config.at("sliding_window").integer(1, kMost));
}

std::vector<int64_t> stops_of(const Json& json) {
  std::vector<int64_t> stops;
  const Json* found = json.find("eos_token_id");
  if (!found || found->is_null()) return stops;
  if (found->kind() != Json::Kind::array) return {found->integer(0, kMost)};
  for (const Json& id : found->array()) stops.push_back(id.integer(0, kMost));
  return stops;
}

void read_shape(const Json& json, Config& out) {
  out.family = json.at("model_type").string();
  static const std::set<std::string> families = {"llama", "mistral", "qwen2", "qwen3"};
  if (!families.count(out.family))
    throw Unsupported("model_type: '" + out.family + "' runs in torch only");
  if (json.at("hidden_act").string() != "silu")
    throw Unsupported("hidden_act: '" + json.at("hidden_act").string() + "' runs in torch only");
  out.hidden = json.at("hidden_size").integer(1, kMostColumns);
  out.ffn = json.at("intermediate_size").integer(1, kMostColumns);
  out.layers = json.at("num_hidden_layers").integer(1, 1024);
  out.heads = json.at("num_attention_heads").integer(1, 1024);
  out.kv_heads = out.heads;
  if (const Json* heads = json.find("num_key_value_heads")) out.kv_heads = heads->integer(1, 1024);
  if (out.heads % out.kv_heads) throw Error("num_key_value_heads: it does not divide the heads");
  out.head_dim = out.hidden / out.heads;
  if (const Json* size = json.find("head_dim")) out.head_dim = size->integer(2, 1024);
  if (out.head_dim < 2 || out.head_dim % 2) throw Error("head_dim: it is not even");
  out.vocabulary = json.at("vocab_size").integer(1, kMost);
  out.positions = longest(json);
  out.epsilon = float(json.at("rms_norm_eps").number());
  out.tied = flag(json, "tie_word_embeddings");
  out.turned_head = out.turned_head && out.tied;
  out.attention_bias = out.family == "qwen2" || flag(json, "attention_bias");
  out.output_bias = out.family != "qwen2" && flag(json, "attention_bias");
  out.mlp_bias = flag(json, "mlp_bias");
  out.head_norms = out.family == "qwen3";
  out.rope = rope_of(json);
  out.stop = stops_of(json);
}

void read_adaptive(const Json& json, AdaptiveSpec& out) {
  const Json* share = json.find("share");
  if (!share || share->is_null()) return;
  static const std::set<std::string> rules = {"importance", "reversed", "random", "layers"};
  const std::string rule = json.at("rule").string();
  if (!rules.count(rule))
    throw Unsupported("quant.adaptive: rule '" + rule + "' runs in torch only");
  out.rule = rule;
  out.share = share->number();
  if (!(out.share >= 0 && out.share <= 1))
    throw Error("quant.adaptive: the share is not within 0 and 1; copy the folder again");
}

void read_quantization(const Json& json, Config& out) {
  const Json* found = json.find("quantization_config");
  if (!found) throw Error("quantization_config: there is none; run `edgeqat quantize` first");
  if (found->at("quant_method").string() != "edgeqat")
    throw Error("quant_method: it is not 'edgeqat'; load the folder elsewhere");
  const double version = found->at("format_version").number();
  if (version != kVersion && version != kAdaptiveVersion && version != kRotatedVersion)
    throw Error("format_version: it is unknown (this is 1 to 3); update edgeqat");
  out.scheme = found->at("scheme").string();
  out.activation_bits = bits_of_part(out.scheme, "a");
  out.kv_bits = bits_of_part(out.scheme, "kv");
  const Json& quant = found->at("quant");
  if (out.activation_bits < 16 && quant.at("activation").at("mode").string() != "dynamic")
    throw Unsupported("quant.activation.mode: activations that are not dynamic run in torch only");
  if (out.kv_bits < 16 && out.activation_bits == 16)
    throw Unsupported("scheme: '" + out.scheme +
                      "' (float queries on packed keys) runs in torch only");
  out.turned_head = flag(quant, "rotate_residual");  // where it is tied
  if (const Json* patterns = quant.find("skip"))
    for (const Json& pattern : patterns->array()) out.skip.push_back(pattern.string());
  const Json& kv = quant.at("kv");
  out.sinks = kv.at("sink_tokens").integer(0, kMost);
  out.rotate_keys = out.kv_bits < 16 && flag(kv, "rotate_keys");
  out.key_offset = out.kv_bits < 16 && flag(kv, "key_offset");
  static const std::set<std::string> sections = {"sink_tokens", "rotate_keys", "key_offset"};
  for (const auto& [key, value] : kv.object())
    if (!sections.count(key) && !value.is_null() &&
        !(value.kind() == Json::Kind::boolean && !value.boolean()))
      throw Unsupported("quant.kv." + key + ": it runs in torch only");
  if (const Json* adaptive = quant.find("adaptive")) read_adaptive(*adaptive, out.adaptive);
  for (const auto& [name, entry] : found->at("layers").object())
    out.packed.emplace(name, layer_of(name, entry));
}

}  // namespace

int bits_of_part(const std::string& scheme, const std::string& part) {
  const std::size_t at = scheme.find(part);
  int bits = 0;
  for (std::size_t i = at + part.size(); at != scheme.npos && i < scheme.size(); ++i) {
    if (scheme[i] < '0' || scheme[i] > '9' || bits > 32) break;
    bits = 10 * bits + (scheme[i] - '0');
  }
  static const std::set<int> known = {1, 2, 3, 4, 6, 8, 16};  // WIDTHS of edgeqat/scheme.py
  if (!known.count(bits))
    throw Error("scheme: '" + scheme + "' is unknown; it looks like w4a8kv4");
  if (bits == 1 && part != "w")
    throw Error("scheme: '" + scheme + "' asks for 1-bit " + part + "; only weights have 1 bit");
  return bits;
}

void Config::check_float(const std::string& layer) const {
  if (activation_bits == 16) return;
  for (const std::string& pattern : skip)
    if (fnmatch(pattern.c_str(), layer.c_str(), 0) == 0) return;
  throw Unsupported("scheme: '" + scheme + "' with float weights in '" + layer +
                    "' runs in torch only");
}

void Config::read_generation(const std::string& text) {
  const Json json = Json::parse(text, "generation_config.json");
  const std::vector<int64_t> found = stops_of(json);
  if (!found.empty()) stop = found;
}

Config Config::parse(const std::string& text) {
  const Json json = Json::parse(text, "config.json");
  Config out;
  read_quantization(json, out);
  read_shape(json, out);
  if (!out.adaptive.rule.empty() && slides(json))
    throw Unsupported("quant.adaptive: two widths and a sliding window run in torch only");
  return out;
}

}  // namespace edgeqat
