"""Taps: queries and keys of attention layers, handed out of a forward pass.

    with taps.capture() as captured:
        model(...)
    captured[3].query

Attention (hf/attention) records into whatever captures at that moment. The recomputation of
gradient checkpointing runs in backward, outside the block, and is never recorded; what was recorded
keeps its place in the autograd graph. Tensors are the quantized ones, after RoPE.

Legend: B batch, N query heads, K key heads, T tokens, D head_dim.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

from torch import Tensor


class Tap(NamedTuple):
    """What one attention layer computed with: q (B, N, T, D), k (B, K, T, D), the mask (B or 1, 1,
    T, T) bool or None, the factor of the logits, and the layer's quantizer (None: float).
    """

    query: Tensor
    key: Tensor
    mask: Tensor | None
    scale: float
    quantizer: Any


_captured: ContextVar[dict[int, Tap] | None] = ContextVar("edgeqat_taps", default=None)


@contextmanager
def capture() -> Iterator[dict[int, Tap]]:
    """Taps by layer number of the forward passes in the block; the last one of a layer stays."""
    taps: dict[int, Tap] = {}
    token = _captured.set(taps)
    try:
        yield taps
    finally:
        _captured.reset(token)


def record(layer: int, tap: Tap) -> None:
    """Keep a tap where something captures."""
    taps = _captured.get()
    if taps is not None:
        taps[layer] = tap
