"""Quantizers switched off for a while: a prepared model computes in float."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from edgeqat.quant.quantizer import Quantizer


@contextmanager
def quantizers_disabled(
    model: nn.Module, kinds: tuple[type[Quantizer], ...] = (Quantizer,)
) -> Iterator[nn.Module]:
    """Run a prepared model in float: every quantizer (of some kinds) passes its input through."""
    quantizers: list[Any] = [module for module in model.modules() if isinstance(module, kinds)]
    before = [module.enabled for module in quantizers]
    try:
        for module in quantizers:
            module.enabled = False
        yield model
    finally:
        for module, enabled in zip(quantizers, before, strict=True):
            module.enabled = enabled
