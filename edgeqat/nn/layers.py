"""Which modules of a model are attention layers, and putting one module in the place of another.

A module that takes another's place takes over its hooks too (`replace`): whoever registered them
still holds the handles that remove them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from edgeqat.errors import ModelError
from edgeqat.families import PROJECTIONS
from edgeqat.nn.decision import edges

_HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called",
    "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_backward_hooks",
    "_backward_pre_hooks", "_is_full_backward_hook", "_state_dict_hooks", "_state_dict_pre_hooks",
)  # fmt: skip


def attentions(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Names and modules of all attention layers, with separate or fused q, k and v projections; an
    image model's stay as they are, their projections are linear layers.
    """
    if edges(model):
        return
    for name, module in model.named_modules():
        if _projections(module):
            yield name, module


def head_sizes(attention: Any) -> tuple[int, int]:
    """The number of key and value heads of a transformers attention layer, and the size of one."""
    size = int(getattr(attention, "head_dim", None) or attention.head_size)
    parts = [getattr(attention, name) for name in _projections(attention)]
    if len(parts) > 1:
        return parts[1].out_features // size, size
    heads = attention.config.num_attention_heads
    return getattr(attention, "num_key_value_heads", heads), size


def _projections(module: nn.Module) -> tuple[str, ...]:
    """The family's names of q, k and v that a module has; none: it is no attention layer."""
    for names in PROJECTIONS:
        if all(hasattr(module, name) for name in names):
            return names
    return ()


def is_hooked(module: nn.Module) -> bool:
    """Whether hooks, or a forward pass set on a module, see its calls."""
    return "forward" in vars(module) or any(
        module.__dict__[hooks] for hooks in ("_forward_hooks", "_forward_pre_hooks")
    )


def replace(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module, with the hooks of its predecessor, in the place of the one that has a name."""
    before = model.get_submodule(name)
    if "forward" in vars(before):
        raise ModelError(
            f"model: '{name}' has a forward pass set on the layer, which the one in its place "
            "would lack; remove it first"
        )
    for hooks in _HOOKS:  # shared, not copied: the handles of their owners know them by identity
        module.__dict__[hooks] = before.__dict__[hooks]
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent) if parent else model, child, module)
