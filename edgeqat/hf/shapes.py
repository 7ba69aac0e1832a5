"""Shapes of known small models, to measure time and memory with random weights."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from edgeqat.errors import UsageError, nearest

SHAPES: dict[str, dict[str, Any]] = {
    # the 8M model of recipes/README.md
    "llama-8m": {
        "vocab_size": 8192, "hidden_size": 256, "num_hidden_layers": 8,
        "intermediate_size": 688, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 2048, "tie_word_embeddings": True,
    },
    # EdgeQAT 2402.10787, section 4.1
    "llama-58m": {
        "vocab_size": 16000, "hidden_size": 512, "num_hidden_layers": 16,
        "intermediate_size": 1024, "num_attention_heads": 8, "num_key_value_heads": 8,
        "max_position_embeddings": 2048, "tie_word_embeddings": False,
    },
    "smollm-135m": {
        "vocab_size": 49152, "hidden_size": 576, "num_hidden_layers": 30,
        "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3,
        "max_position_embeddings": 2048, "tie_word_embeddings": True,
    },
    "tinyllama-1.1b": {
        "vocab_size": 32000, "hidden_size": 2048, "num_hidden_layers": 22,
        "intermediate_size": 5632, "num_attention_heads": 32, "num_key_value_heads": 4,
        "max_position_embeddings": 2048, "tie_word_embeddings": False,
    },
}  # fmt: skip


def random_model(name: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A random float model of a known shape; an unknown name suggests the nearest."""
    if name not in SHAPES:
        raise UsageError(f"shape: '{name}' is not known; {nearest(name, list(SHAPES))}")
    torch.manual_seed(seed)
    config = LlamaConfig(**SHAPES[name])
    return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
