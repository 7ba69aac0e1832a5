"""What rounding the weight of one layer costs, for several widths at once.

    KL(p || p_hat) ~ 1/2 mean_t (g_t . d_t)^2,    d = (W_hat - W) x,  g = d log p(y) / d output

with labels y drawn from the float model itself, so that the mean is its Fisher information: one
forward and one backward pass of each sequence tell every layer and width. A tied embedding counts
where it is looked up and where it is the head.

Legend: T tokens, O outputs, I inputs, V vocabulary, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from edgeqat.nn.linear import QuantEmbedding, QuantLinear
from edgeqat.nn.switch import quantizers_disabled
from edgeqat.quant.hadamard import rotate
from edgeqat.quant.lsq import WeightQuantizer

Losses = dict[str, dict[int, float]]  # by layer, by bits
Rounder = Callable[[Any, int], WeightQuantizer]  # an empty quantizer of a layer at a width


def sensitivity(model: nn.Module, ids: Tensor, widths: tuple[int, ...], rounder: Rounder) -> Losses:
    """Expected KL, in nats a token, of rounding each layer of a prepared language model to each
    width; ids (B, T) of calibration text.
    """
    owners = {
        id(layer.weight): name
        for name, layer in model.named_modules()
        if isinstance(layer, (QuantLinear, QuantEmbedding)) and _has_own(layer)
    }
    losses: Losses = {name: dict.fromkeys(widths, 0.0) for name in owners.values()}
    if not losses:
        return losses
    errors = _Errors(widths, rounder, losses)
    handles = [
        layer.register_forward_hook(errors.watch(owners[id(layer.weight)]))
        for layer in model.modules()
        if isinstance(layer, (QuantLinear, QuantEmbedding)) and id(layer.weight) in owners
    ]
    trained = [p for p in model.parameters() if p.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        with quantizers_disabled(model.eval()), torch.enable_grad():
            for sequence in ids.split(1):  # the logits of one at a time
                logits = model(input_ids=sequence, use_cache=False).logits[0].float()
                with torch.no_grad():
                    drawn = torch.multinomial(logits.softmax(-1), 1)
                logits.log_softmax(-1).gather(1, drawn).sum().backward()
    finally:
        for handle in handles:
            handle.remove()
        for parameter in trained:
            parameter.requires_grad_(True)
    return {
        name: {bits: total / ids.numel() for bits, total in by_bits.items()}
        for name, by_bits in losses.items()
    }


class _Errors:
    """Hooks that add what a layer's rounding does to the output, once its gradient is there."""

    def __init__(self, widths: tuple[int, ...], rounder: Rounder, losses: Losses) -> None:
        self._widths, self._rounder, self._losses = widths, rounder, losses
        self._quantizers: dict[tuple[str, int], WeightQuantizer] = {}

    def watch(self, name: str) -> Callable[[Any, tuple[Tensor, ...], Tensor], Tensor]:
        def keep(layer: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if not output.requires_grad:
                output = output.detach().requires_grad_(True)
            given = args[0].detach()
            output.register_hook(lambda grad: self._add(name, layer, given, grad))
            return output

        return keep

    @torch.no_grad()
    def _add(self, name: str, layer: Any, given: Tensor, grad: Tensor) -> None:
        weight, g = layer.weight.detach(), grad.flatten(0, -2).float()
        if isinstance(layer, QuantEmbedding):
            index, x = given.flatten(), None
        else:
            index, x = None, rotate(given, layer.rotation).flatten(0, -2).float()
        for bits in self._widths:
            error = self._quantizer(name, layer, bits)(weight).sub_(weight)
            change = error[index] if x is None else x @ error.t()
            self._losses[name][bits] += float((change * g).sum(-1).square().sum()) / 2

    def _quantizer(self, name: str, layer: Any, bits: int) -> WeightQuantizer:
        """The quantizer of a layer at a width, its scales found once."""
        if (name, bits) not in self._quantizers:
            quantizer = self._quantizers[name, bits] = self._rounder(layer, bits)
            quantizer.initialize(layer.weight)
        return self._quantizers[name, bits]


def _has_own(layer: Any) -> bool:
    return "weight_quantizer" in layer._modules and isinstance(
        layer.weight_quantizer, WeightQuantizer
    )
