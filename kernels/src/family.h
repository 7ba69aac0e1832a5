// What differs between the model types that the engine runs: the names of tensors, and which norms
// stand where. Sizes and factors of a model are in its config.json (config.h).
#pragma once

#include <string>
#include <vector>

namespace edgeqat {

struct Family {
  std::string name;
  // Norms of what a block reads and of what it adds to the residual stream; empty: none.
  std::string attention_norm = "input_layernorm", attention_end;
  std::string mlp_norm = "post_attention_layernorm", mlp_end;
  std::string query_norm, key_norm;
  bool whole_head_norms = false;   // one norm over all heads, else one per head
  bool norms_behind_rope = false;
  float gain = 0;                  // of a norm whose weight is 0
  bool adjacent = false;           // RoPE turns neighbours, and not the halves of a head
  std::string heads;               // q, k and v in one matrix; empty: three
  std::string gate = "mlp.gate_proj", up = "mlp.up_proj";  // no gate: act(up)
  std::string gate_and_up;         // both in one matrix; empty: two
  std::string down = "mlp.down_proj";
  bool windows = false;            // layers have a sliding window where the config says so
};

// nullptr: the engine does not run it.
const Family* family_of(const std::string& model_type);

}  // namespace edgeqat
