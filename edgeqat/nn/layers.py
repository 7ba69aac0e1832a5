"""Which modules of a model are attention layers, and putting one module in the place of another.

A module that takes another's place takes over its hooks too (`replace`): whoever registered them
still holds the handles that remove them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from edgeqat.nn.decision import edges

ATTENTION_PROJECTIONS = ("q_proj", "k_proj", "v_proj")
FUSED_PROJECTION = "c_attn"  # GPT-2: q, k and v in one layer, as many of each


def attentions(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Names and modules of all attention layers, with separate or fused q, k and v projections; an
    image model's stay as they are, their projections are linear layers.
    """
    if edges(model):
        return
    for name, module in model.named_modules():
        separate = all(hasattr(module, part) for part in ATTENTION_PROJECTIONS)
        if separate or hasattr(module, FUSED_PROJECTION):
            yield name, module


def replace(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in the place of the one that has a name."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent) if parent else model, child, module)
