"""What a prepared model learns from a few batches before training: balanced heads, static
activation scales, key offsets, error-compensated weights, importance thresholds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edgeqat.errors import DataError
from edgeqat.nn import compensation, head_balance
from edgeqat.nn.blocks import decoder_layers
from edgeqat.nn.observation import check_ranges, observed, watching
from edgeqat.nn.switch import quantizers_disabled
from edgeqat.nn.token_importance import TokenImportance, move_thresholds, observing
from edgeqat.quant.quantizer import Quantizer
from edgeqat.recipe.train import BlockSection

_NO_BATCHES = "calibrate: there are no batches; give at least one"
_THRESHOLD_PASSES = 3  # the widths that one pass decides on change what the next one measures


@torch.no_grad()
def calibrate(model: nn.Module, batches: Iterable[Any], blocks: BlockSection | None = None) -> None:
    """Balance heads and initialise static activation quantizers, key offsets, compensated weights
    and importance thresholds on batches, in eval mode; a no-op without any. Layers that do not run
    stay unset. `blocks` trains decoder layers one by one where weights are compensated
    (nn/reconstruction).

    A batch is token ids (B, T) or (T,), images (B, 3, S, S), a mapping of the model's arguments
    (labels are left out) or a tuple that begins with the input: what a DataLoader gives.
    """
    watchers = watching(model)
    adaptive = any(isinstance(module, TokenImportance) for module in model.modules())
    compensated = bool(compensation.waiting(model)) and bool(decoder_layers(model))
    if not watchers and not adaptive and not compensated:
        return
    modes = [(module, module.training) for module in model.modules()]
    balanced = head_balance.is_wanted(model)
    batches = list(batches) if adaptive or compensated or balanced else batches
    if (compensated or balanced) and not batches:
        raise DataError(_NO_BATCHES)
    one_by_one = compensated and not adaptive and _all_in_layers(model, watchers)
    try:
        model.eval()
        if balanced and not one_by_one:
            with quantizers_disabled(model):
                head_balance.balance(model, batches, _run)
        if not one_by_one:
            _observe(model, watchers, batches)
        if compensated:
            compensation.compensate(model, batches, _run, blocks, observe=one_by_one)
        for _ in range(_THRESHOLD_PASSES if adaptive else 0):
            with observing(model):
                for batch in batches:
                    _run(model, batch)
            move_thresholds(model, rate=1.0)
    finally:
        for submodule, training in modes:
            submodule.training = training


def _all_in_layers(model: nn.Module, quantizers: list[Quantizer]) -> bool:
    """Whether the quantizers are all inside of decoder layers."""
    layers = [model.get_submodule(name) for name in decoder_layers(model)]
    inside = {id(module) for layer in layers for module in layer.modules()}
    return all(id(quantizer) in inside for quantizer in quantizers)


def _observe(model: nn.Module, watchers: list[Quantizer], batches: Iterable[Any]) -> None:
    count = 0
    with observed(watchers):
        for batch in batches:
            _run(model, batch)
            count += 1
    if not count:
        raise DataError(_NO_BATCHES)
    check_ranges(model)


def _run(model: nn.Module, batch: Any) -> None:
    """One forward pass over a batch, moved to the model's device."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    if isinstance(batch, Mapping):
        inputs = {
            name: value.to(device) if isinstance(value, Tensor) else value
            for name, value in batch.items()
            if name not in ("label", "labels")
        }
        model(**inputs)
        return
    first = batch[0] if isinstance(batch, (tuple, list)) and len(batch) else batch
    if not isinstance(first, Tensor):
        raise DataError(
            f"calibrate: a batch is a {type(batch).__name__}; give tensors, tuples that begin with "
            "one, or mappings of the model's arguments"
        )
    ids = first.unsqueeze(0) if first.ndim == 1 and not first.is_floating_point() else first
    model(ids.to(device))
