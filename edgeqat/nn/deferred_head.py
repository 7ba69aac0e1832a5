"""A language model's forward pass that stops before its head. Logits of a whole step (tokens times
vocabulary) take more memory than anything else in it, so a loss multiplies with the head a few rows
at a time (losses/distill).

    with deferred(model) as head:
        output = model(input_ids)             # .logits are hidden states where head.product is set

Legend: B batch, T tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from edgeqat.families import FAMILIES
from edgeqat.losses.distill import HeadProduct
from edgeqat.nn.half import HalfLinear
from edgeqat.nn.linear import QuantLinear
from edgeqat.quant.hadamard import rotate

_BEHIND = ("logits_scaling", "final_logit_softcapping")  # what changes the head's product
_KINDS = (nn.Linear, HalfLinear, QuantLinear)


class DeferredHead:
    """What the head of a model was to multiply in its last forward pass; None: it has done so."""

    product: HeadProduct | None = None


@contextmanager
def deferred(model: nn.Module | None) -> Iterator[DeferredHead]:
    """Inside, a language model's head hands hidden states (B, T, H) on as its logits, and keeps the
    product; others compute as always.
    """
    taken, head = DeferredHead(), _head(model)
    if head is None:
        yield taken
        return

    def keep(hidden: Tensor) -> Tensor:
        kind, values, weight = hidden.device.type, hidden, head.weight
        if isinstance(head, QuantLinear):
            values = head.input_quantizer(rotate(hidden, head.rotation))
            weight = head.weight_quantizer(weight)
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else values.dtype
        taken.product = HeadProduct(values.flatten(0, -2), weight, head.bias, dtype)
        return hidden

    head.forward = keep
    try:
        yield taken
    finally:
        del head.forward


def _head(model: nn.Module | None) -> Any:
    """The head of a model of a known family, whose logits are its product and nothing else."""
    inner: Any = model.module if isinstance(model, DistributedDataParallel) else model
    config = getattr(inner, "config", None)
    family = FAMILIES.get(str(getattr(config, "model_type", None)))
    if family is None or any(getattr(config, name, None) not in (None, 1) for name in _BEHIND):
        return None
    head = getattr(inner, family.head, None)
    plain = type(head) in _KINDS and "forward" not in vars(head) and not head._forward_hooks
    return head if plain and not isinstance(head.weight, DTensor) else None
