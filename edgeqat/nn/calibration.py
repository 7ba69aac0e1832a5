"""What a prepared model learns from a few batches before training: static activation scales, key
offsets, importance thresholds; and running it in float meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeGuard

import torch
from torch import nn

from edgeqat.nn.token_importance import TokenImportance, move_thresholds, observing
from edgeqat.quant.dynamic import CacheQuantizer, DynamicQuantizer
from edgeqat.quant.ggml import BlockQuantizer
from edgeqat.quant.lsq import StaticQuantizer, WeightQuantizer

_QUANTIZERS = (WeightQuantizer, StaticQuantizer, DynamicQuantizer, BlockQuantizer, CacheQuantizer)
_THRESHOLD_PASSES = 3  # the widths that one pass decides on change what the next one measures


@contextmanager
def quantizers_disabled(
    model: nn.Module, kinds: tuple[type[nn.Module], ...] = _QUANTIZERS
) -> Iterator[nn.Module]:
    """Run a prepared model in float: every quantizer (of some kinds) passes its input through."""
    found: list[Any] = [module for module in model.modules() if isinstance(module, kinds)]
    before = [module.enabled for module in found]
    try:
        for module in found:
            module.enabled = False
        yield model
    finally:
        for module, enabled in zip(found, before, strict=True):
            module.enabled = enabled


@torch.no_grad()
def calibrate(model: nn.Module, batches: Iterable[torch.Tensor]) -> None:
    """Initialise static activation quantizers, key offsets and importance thresholds on batches of
    token ids (B, T), in eval mode; a no-op without any. Layers that do not run stay unset.
    """
    static = [module for module in model.modules() if _is_static(module)]
    adaptive = any(isinstance(module, TokenImportance) for module in model.modules())
    if not static and not adaptive:
        return
    modes = [(module, module.training) for module in model.modules()]
    batches = list(batches) if adaptive else batches
    try:
        model.eval()
        for module in static:
            module.observe()
        for batch in batches:
            model(batch)
        for module in static:
            module.finish()
        for _ in range(_THRESHOLD_PASSES if adaptive else 0):
            with observing(model):
                for batch in batches:
                    model(batch)
            move_thresholds(model, rate=1.0)
    finally:
        for module in static:
            module.finish()  # once more is nothing; without it one that was cut off observes on
        for own, training in modes:
            own.training = training


def _is_static(module: nn.Module) -> TypeGuard[StaticQuantizer | CacheQuantizer]:
    if isinstance(module, CacheQuantizer):
        return module.offset is not None
    return isinstance(module, StaticQuantizer)
