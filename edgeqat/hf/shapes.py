"""Float models of given sizes with random weights, to measure time and memory."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from edgeqat.runtime.shape import Shape


def random_model(
    shape: Shape, seed: int = 0, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """A random float model with the given sizes."""
    torch.manual_seed(seed)
    config = LlamaConfig(**shape.config())
    return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
