"""Average bits, measured: the widths that tokens took while a model ran.

Activations: the inputs of linear layers and the queries of every decoder layer (lm_head, always 8
bit, is left out). KV cache: keys and values as they are written, sinks counted. Every real token
and every layer counts once.

Legend: L layers, B batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from edgeqat.nn.attention import AttentionQuantizer
from edgeqat.scheme import FLOAT_BITS, HIGH_BITS, Scheme

_BINS = 8


class WidthMeter:
    """Counts widths while its `with` block runs forward passes of one model."""

    def __init__(self, model: nn.Module, scheme: Scheme) -> None:
        modules = [m for m in model.modules() if isinstance(m, AttentionQuantizer)]
        self.scheme = scheme
        self._layers = list(enumerate(modules))
        self._handles: list[Any] = []
        self._counting = True
        self._counts: dict[tuple[str, int], Tensor] = {}

    def __enter__(self) -> WidthMeter:
        for layer, module in self._layers:
            hook = self._counter(layer)
            self._handles.append(module.register_forward_hook(hook))
        return self

    def __exit__(self, *_: Any) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @contextmanager
    def paused(self, pause: bool = True) -> Iterator[None]:
        """Count nothing in the block, if `pause`."""
        before, self._counting = self._counting, self._counting and not pause
        try:
            yield
        finally:
            self._counting = before

    def average_bits(self) -> dict[str, float]:
        """{"activations", "kv"}: mean over tokens and layers; 16 is float."""
        widths = {"activations": self.scheme.activation_bits, "kv": self.scheme.kv_bits}
        return {name: round(self._average(name, bits), 4) for name, bits in widths.items()}

    def shares(self) -> dict[str, Any]:
        """Measured shares of important tokens: over all layers, by layer, and by position in equal
        parts of the longest sequence.
        """
        high, total = self._sums("activations"), self._sums("tokens")
        by_position = [
            round((part.sum() / of.sum()).item(), 4)
            for part, of in zip(high.sum(0).chunk(_BINS), total.sum(0).chunk(_BINS), strict=True)
        ]
        by_layer = [round(value, 4) for value in (high.sum(1) / total.sum(1)).tolist()]
        share = round((high.sum() / total.sum()).item(), 4)
        return {"measured": share, "by_layer": by_layer, "by_position": by_position}

    def _counter(self, layer: int) -> Any:
        def count(module: AttentionQuantizer, *_: Any) -> None:
            if not self._counting:
                return
            assert module.newest is not None
            position, kept = module.newest
            important = torch.full_like(kept, module.widths is not None)
            if module.widths is not None and module.widths.high is not None:
                important = module.widths.high
            place, real = position.clamp(min=0), position >= 0
            for name, marks in (("tokens", real), ("kv", kept), ("activations", important)):
                self._add((name, layer), place[(marks & real).expand_as(place)])

        return count

    def _add(self, key: tuple[str, int], places: Tensor) -> None:
        counted = torch.bincount(places.cpu()).double()
        before = self._counts.get(key, torch.zeros(0, dtype=torch.float64))
        length = max(len(before), len(counted))
        padded = [nn.functional.pad(part, (0, length - len(part))) for part in (before, counted)]
        self._counts[key] = padded[0] + padded[1]

    def _sums(self, name: str) -> Tensor:
        """Counts (L, T) of one kind."""
        length = max(map(len, self._counts.values()))
        rows = [self._counts[name, layer] for layer, _ in self._layers]
        return torch.stack([nn.functional.pad(row, (0, length - len(row))) for row in rows])

    def _average(self, name: str, bits: int) -> float:
        if bits >= HIGH_BITS:
            return float(min(bits, FLOAT_BITS))
        share = (self._sums(name).sum() / self._sums("tokens").sum()).item()
        return bits + (HIGH_BITS - bits) * share
