#include "config.h"

#include <fnmatch.h>

#include <algorithm>
#include <cmath>
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

bool flag(const Json& config, const char* key) {
  const Json* value = config.find(key);
  return value && value->boolean();
}

float factor(const Json& config, const char* key) {
  const Json* value = config.find(key);
  return value && !value->is_null() ? float(value->number()) : 1.0f;
}

// The kinds of layers that a config names; empty: all are alike.
std::vector<std::string> layer_types(const Json& config, int64_t layers) {
  std::vector<std::string> types;
  const Json* found = config.find("layer_types");
  if (!found || found->is_null()) return types;
  for (const Json& type : found->array()) types.push_back(type.string());
  if (int64_t(types.size()) != layers) throw Error("layer_types: there is not one for each layer");
  for (const std::string& type : types)
    if (type != "full_attention" && type != "sliding_attention" && type != "attention")
      throw Unsupported("layer_types: '" + type + "' runs in torch only");
  return types;
}

std::vector<int64_t> windows_of(const Json& config, const std::vector<std::string>& types,
                                const Config& out) {
  const Json* window = config.find("sliding_window");
  if (!out.family.windows || !window || window->is_null()) return {};
  const Json* use = config.find("use_sliding_window");
  if (types.empty() && use && !use->boolean()) return {};
  const int64_t size = window->integer(1, kMost);
  std::vector<int64_t> windows(std::size_t(out.layers), size);
  for (std::size_t i = 0; i < types.size(); ++i)
    if (types[i] != "sliding_attention") windows[i] = 0;
  return windows;
}

// Rotary embeddings of all layers, of each kind of layer, or of some layers only.
void read_ropes(const Json& json, const std::vector<std::string>& types, Config& out) {
  const Json& values = json.at("rope_parameters");
  const std::string& family = out.family.name;
  if (values.find("full_attention") && types.empty())
    throw Error("layer_types: they are missing; copy the folder again");
  std::vector<int> chosen(std::size_t(out.layers), 0);
  if (values.find("full_attention")) {
    for (const char* kind : {"full_attention", "sliding_attention"})
      out.ropes.push_back(rope_of(values.at(kind), out.positions));
    for (std::size_t i = 0; i < types.size(); ++i) chosen[i] = types[i] == "sliding_attention";
  } else {
    out.ropes.push_back(rope_of(values, out.positions));
  }
  const Json* uses = family == "smollm3" ? json.find("no_rope_layers") : nullptr;
  if (uses && !uses->is_null()) {
    if (uses->array().size() != chosen.size())
      throw Error("no_rope_layers: there is not one for each layer");
    for (std::size_t i = 0; i < chosen.size(); ++i)
      if (!uses->array()[i].integer(0, 1)) chosen[i] = -1;
  }
  if (family == "exaone4" && !out.windows.empty())
    for (std::size_t i = 0; i < chosen.size(); ++i)
      if (!out.windows[i]) chosen[i] = -1;
  const Json* kind = json.find("position_embedding_type");
  if (family == "granitemoehybrid" && (!kind || kind->is_null() || kind->string() != "rope"))
    std::fill(chosen.begin(), chosen.end(), -1);
  out.layer_ropes = chosen;
  for (const RopeSpec& rope : out.ropes)
    if (rope.type == "longrope")
      out.positions = std::min(out.positions, int64_t(rope.original_positions));
}

Activation activation_of(const Json& json, const Family& family) {
  const bool gemma = family.name == "gemma3_text";
  const std::string name = json.at(gemma ? "hidden_activation" : "hidden_act").string();
  if (name == "silu") return Activation::silu;
  if (name == "gelu_pytorch_tanh") return Activation::gelu;
  if (name == "relu2") return Activation::squared_relu;
  throw Unsupported("hidden_act: '" + name + "' runs in torch only");
}

// Factors that some families multiply with.
void read_factors(const Json& json, Config& out) {
  const std::string& family = out.family.name;
  if (family == "gemma3_text") {
    out.embedding_factor = std::sqrt(float(out.hidden));
    out.attention_factor = 1 / std::sqrt(json.at("query_pre_attn_scalar").number());
    if (flag(json, "use_bidirectional_attention"))
      throw Unsupported("use_bidirectional_attention: it runs in torch only");
    for (const char* cap : {"attn_logit_softcapping", "final_logit_softcapping"})
      if (const Json* found = json.find(cap); found && !found->is_null())
        throw Unsupported(std::string(cap) + ": it runs in torch only");
  }
  if (family == "granite" || family == "granitemoehybrid") {
    out.embedding_factor = factor(json, "embedding_multiplier");
    out.residual_factor = factor(json, "residual_multiplier");
    out.logits_divisor = factor(json, "logits_scaling");
    out.attention_factor = json.at("attention_multiplier").number();
  }
  if (family == "granitemoehybrid" && json.at("num_local_experts").integer(0, kMost))
    throw Unsupported("num_local_experts: a mixture of experts runs in torch only");
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
  const std::string type = json.at("model_type").string();
  const Family* family = family_of(type);
  if (!family) throw Unsupported("model_type: '" + type + "' runs in torch only");
  out.family = *family;
  out.activation = activation_of(json, out.family);
  if ((out.activation == Activation::squared_relu) != out.family.gate.empty())
    throw Unsupported("hidden_act: this one runs in torch only for '" + type + "'");
  out.hidden = json.at("hidden_size").integer(1, kMostColumns);
  const char* ffn = type == "granitemoehybrid" ? "shared_intermediate_size" : "intermediate_size";
  out.ffn = json.at(ffn).integer(1, kMostColumns);
  out.layers = json.at("num_hidden_layers").integer(1, 1024);
  out.heads = json.at("num_attention_heads").integer(1, 1024);
  out.kv_heads = out.heads;
  if (const Json* heads = json.find("num_key_value_heads"); heads && !heads->is_null())
    out.kv_heads = heads->integer(1, 1024);
  if (out.heads % out.kv_heads) throw Error("num_key_value_heads: it does not divide the heads");
  out.head_dim = out.hidden / out.heads;
  if (const Json* size = json.find("head_dim"); size && !size->is_null())
    out.head_dim = size->integer(2, 1024);
  if (out.head_dim < 2 || out.head_dim % 2) throw Error("head_dim: it is not even");
  out.vocabulary = json.at("vocab_size").integer(1, kMost);
  out.positions = json.at("max_position_embeddings").integer(1, kMost);
  out.epsilon = float(json.at("rms_norm_eps").number());
  out.tied = flag(json, "tie_word_embeddings");
  out.turned_head = out.turned_head && out.tied;
  const bool biases = type == "ernie4_5" && flag(json, "use_bias");
  out.attention_bias = type == "qwen2" || biases || flag(json, "attention_bias");
  out.output_bias = type != "qwen2" && (biases || flag(json, "attention_bias"));
  out.mlp_bias = biases || flag(json, "mlp_bias");
  const auto types = layer_types(json, out.layers);
  out.windows = windows_of(json, types, out);
  read_ropes(json, types, out);
  read_factors(json, out);
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
  bool slides = false;
  for (const int64_t window : out.windows) slides |= window > 0;
  if (!out.adaptive.rule.empty() && slides)
    throw Unsupported("quant.adaptive: two widths and a sliding window run in torch only");
  return out;
}

}  // namespace edgeqat
