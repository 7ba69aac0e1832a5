"""Which quantizer an activation mode of the recipe stands for."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from edgeqat.quant.dynamic import DynamicQuantizer, MinMaxQuantizer
from edgeqat.quant.ggml import BlockQuantizer
from edgeqat.quant.lsq import StaticQuantizer
from edgeqat.quant.pact import PactQuantizer
from edgeqat.quant.quantizer import Quantizer

_KINDS: dict[str, Callable[[int], Quantizer]] = {
    "dynamic": DynamicQuantizer,
    "minmax": MinMaxQuantizer,
    "static": StaticQuantizer,
    "pact": PactQuantizer,
    "q8_0": BlockQuantizer,
}


def input_quantizer(mode: str, bits: int) -> Quantizer:
    """A new quantizer of activations."""
    return _KINDS[mode](bits)


def mode_of(quantizer: nn.Module) -> str:
    """The mode of a quantizer of activations; `dynamic` for float ones."""
    return next((name for name, kind in _KINDS.items() if type(quantizer) is kind), "dynamic")
