"""Average bits, measured: the widths that tokens took while a model ran.

Activations: the inputs of the linear layers of every decoder layer, those left in float at 16
(lm_head, always 8 bit, is left out); queries are as wide. KV cache: keys and values as they are
written, sinks counted. Every real token and every layer counts once.

Legend: L layers, B batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from edgeqat.nn import kivi
from edgeqat.nn.attention import AttentionQuantizer
from edgeqat.nn.layers import attentions
from edgeqat.nn.packed import PackedLinear
from edgeqat.recipe.recipe import Recipe
from edgeqat.scheme import FLOAT_BITS, HIGH_BITS, Scheme

_BINS = 8


class WidthMeter:
    """Counts widths while its `with` block runs forward passes of one model."""

    def __init__(self, model: nn.Module, scheme: Scheme) -> None:
        owners = [
            (name, module.attention_quantizer)
            for name, module in attentions(model)
            if hasattr(module, "attention_quantizer")
        ]
        self.scheme = scheme
        self._layers = list(enumerate(quantizer for _, quantizer in owners))
        self._float_inputs = [
            _float_inputs(model.get_submodule(name.rpartition(".")[0])) for name, _ in owners
        ]
        self._chooses_keys = any(
            quantizer.salient_share is not None for _, quantizer in self._layers
        )
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

    @property
    def counted(self) -> bool:
        """Whether anything was counted; classifiers have nothing that is."""
        return bool(self._counts)

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
        inputs = self._bits("activations", self.scheme.activation_bits)
        kept = torch.tensor(self._float_inputs, dtype=torch.float64)
        tokens = self._sums("tokens").sum(1)
        bits = {
            "activations": inputs + (FLOAT_BITS - inputs) * kept,
            "kv": self._bits("kv", self.scheme.kv_bits),
        }
        return {
            name: round(((layer_bits * tokens).sum() / tokens.sum()).item(), 4)
            for name, layer_bits in bits.items()
        }

    def shares(self) -> dict[str, Any]:
        """Measured shares of important tokens (of keys and values at 8 bit, where a rule chooses
        only those): over all layers, by layer, and by position in equal parts of the longest
        sequence.
        """
        high = self._sums("kv" if self._chooses_keys else "activations")
        total = self._sums("tokens")
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
            position, kept, real = module.newest
            important = torch.full_like(kept, module.widths is not None)
            if module.widths is not None and module.widths.high is not None:
                important = module.widths.high
            place = position.clamp(min=0)
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

    def _bits(self, name: str, bits: int) -> Tensor:
        """Mean width (L,) of the tokens of each layer."""
        high, total = self._sums(name).sum(1), self._sums("tokens").sum(1)
        return bits + max(HIGH_BITS - bits, 0) * high / total


def _float_inputs(block: nn.Module) -> float:
    """Share of a block's linear layers whose inputs stay in float although they could be
    quantized.
    """
    kinds = (nn.Linear, PackedLinear)
    inputs = [getattr(m, "input_quantizer", None) for m in block.modules() if isinstance(m, kinds)]
    floats = sum(isinstance(quantizer, nn.Identity | None) for quantizer in inputs)
    return floats / max(len(inputs), 1)


def average_bits(recipe: Recipe, measured: dict[str, float] | None = None) -> dict[str, float]:
    """Average widths of activations and of cached keys and values: as `measured` by a meter, else
    as the scheme says over one block, sinks counted. KIVI's cache, which holds its newest tokens in
    float only for a while, is never measured.
    """
    scheme, context = recipe.quant.bits(), recipe.data.context
    kv = float(scheme.kv_bits)
    if recipe.quant.kv.kivi is not None:
        kv = kivi.average_bits(scheme.kv_bits, recipe.quant.kv.kivi, context)
        measured = measured and {**measured, "kv": round(kv, 4)}
    elif kv < HIGH_BITS:
        sinks = min(recipe.quant.kv.sink_tokens, context)
        kv += (HIGH_BITS - kv) * sinks / context
    activations = float(min(scheme.activation_bits, FLOAT_BITS))
    return measured or {"activations": activations, "kv": round(kv, 4)}
