#include "family.h"

namespace edgeqat {
namespace {

Family named(const char* name) {
  Family made;
  made.name = name;
  return made;
}

Family with_windows(Family made) {
  made.windows = true;
  return made;
}

// Heads with norms of their own.
Family with_head_norms(Family made, const char* query = "q_norm", const char* key = "k_norm") {
  made.query_norm = query;
  made.key_norm = key;
  return made;
}

// Blocks that read the residual stream as it is, and whose output has a norm.
Family with_norms_behind(Family made) {
  made.attention_norm = made.mlp_norm = "";
  made.attention_end = "post_attention_layernorm";
  made.mlp_end = "post_feedforward_layernorm";
  return made;
}

Family olmo(const char* name) {
  Family made = with_norms_behind(with_head_norms(named(name)));
  made.whole_head_norms = true;
  return made;
}

Family gemma3() {
  Family made = with_norms_behind(with_head_norms(named("gemma3_text")));
  made.attention_norm = "input_layernorm";
  made.mlp_norm = "pre_feedforward_layernorm";
  made.gain = 1;
  return made;
}

Family hunyuan() {
  Family made = with_head_norms(named("hunyuan_v1_dense"), "query_layernorm", "key_layernorm");
  made.norms_behind_rope = true;
  return made;
}

Family ernie() {
  Family made = named("ernie4_5");
  made.adjacent = true;
  return made;
}

Family arcee() {
  Family made = named("arcee");
  made.gate = "";
  return made;
}

Family granite_4() {
  Family made = named("granitemoehybrid");
  made.gate_and_up = "shared_mlp.input_linear";
  made.down = "shared_mlp.output_linear";
  return made;
}

Family phi3() {
  Family made = named("phi3");
  made.heads = "qkv_proj";
  made.gate_and_up = "mlp.gate_up_proj";
  return made;
}

}  // namespace

const Family* family_of(const std::string& model_type) {
  static const std::vector<Family> families = {
      named("llama"), with_windows(named("mistral")), with_windows(named("ministral3")),
      with_windows(named("qwen2")), with_windows(with_head_norms(named("qwen3"))),
      with_windows(named("smollm3")), with_windows(gemma3()), named("granite"), granite_4(),
      olmo("olmo2"), with_windows(olmo("olmo3")),
      with_windows(with_norms_behind(with_head_norms(named("exaone4")))), ernie(), arcee(),
      hunyuan(), with_windows(phi3())};
  for (const Family& family : families)
    if (family.name == model_type) return &family;
  return nullptr;
}

}  // namespace edgeqat
