"""Attention layers of the families whose projections are apart: q, k, v and the output, by role."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from edgeqat.families import Family, family_of


def separate_heads(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Names and modules of attention layers with projections q, k, v and output of their own, and
    RoPE.
    """
    for name, module in model.named_modules():
        family = family_in(module)
        apart = len(family.projections) == 3 and family.writers
        if apart and all(hasattr(module, part) for part in family.projections):
            yield name, module


def head(model: nn.Module) -> Any:
    """The head of a language model of a known family, or None."""
    return getattr(model, family_in(model).head, None)


def last_norm(model: nn.Module) -> Any:
    """The norm before the head, or None."""
    name = family_in(model).last_norm
    found = [getattr(child, name) for child in model.children() if hasattr(child, name)]
    return found[0] if len(found) == 1 else None


def family_in(module: nn.Module) -> Family:
    """The row of the model type that a module's config names."""
    return family_of(getattr(getattr(module, "config", None), "model_type", None))


def projections(attention: Any) -> list[Any]:
    """The layers of q, k and v."""
    return [getattr(attention, n) for n in family_of(attention.config.model_type).projections]


def output(attention: Any) -> Any:
    """The layer that reads the values of all heads."""
    return getattr(attention, output_name(attention))


def output_name(attention: Any) -> str:
    """The name of that layer in its attention layer."""
    return family_of(attention.config.model_type).writers[0].rpartition(".")[2]
