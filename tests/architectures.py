"""Every supported model type: its classes and what its tiny model needs beside tiny.shape()."""

from __future__ import annotations

import transformers

_WINDOWS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 6}
_MULTIPLIERS = {
    "embedding_multiplier": 3.0, "attention_multiplier": 0.2, "residual_multiplier": 0.7,
    "logits_scaling": 2.0,
}  # fmt: skip
_DENSE = {
    "num_local_experts": 0, "layer_types": ["full_attention"] * 2, "shared_intermediate_size": 96,
    "position_embedding_type": "rope",
}  # fmt: skip
_OWN = {
    "gpt2": ("GPT2LMHeadModel", {"resid_pdrop": 0, "attn_pdrop": 0, "embd_pdrop": 0}),
    "gpt_neox": ("GPTNeoXForCausalLM", {}),
    "llama": ("LlamaForCausalLM", {}),
    "mistral": ("MistralForCausalLM", {"sliding_window": 6}),
    "ministral3": ("Ministral3ForCausalLM", {}),
    "qwen2": ("Qwen2ForCausalLM", {}),
    "qwen3": ("Qwen3ForCausalLM", {}),
    "smollm3": ("SmolLM3ForCausalLM", {"pad_token_id": 0, "no_rope_layers": [1, 0]}),
    "gemma3_text": ("Gemma3ForCausalLM", {**_WINDOWS, "query_pre_attn_scalar": 12}),
    "granite": ("GraniteForCausalLM", _MULTIPLIERS),
    "granitemoehybrid": ("GraniteMoeHybridForCausalLM", {**_MULTIPLIERS, **_DENSE}),
    "olmo2": ("Olmo2ForCausalLM", {}),
    "olmo3": ("Olmo3ForCausalLM", _WINDOWS),
    "exaone4": ("Exaone4ForCausalLM", _WINDOWS),
    "ernie4_5": ("Ernie4_5ForCausalLM", {}),
    "arcee": ("ArceeForCausalLM", {}),
    "hunyuan_v1_dense": ("HunYuanDenseV1ForCausalLM", {}),
    "phi3": ("Phi3ForCausalLM", {"pad_token_id": 0}),
    "lfm2": (
        "Lfm2ForCausalLM",
        {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    ),
}


def classes(family: str) -> tuple[type, type]:
    """The model and the configuration class of a model type."""
    kind = getattr(transformers, _OWN[family][0])
    return kind, kind.config_class


FAMILIES = {family: (*classes(family), changes) for family, (_, changes) in _OWN.items()}
