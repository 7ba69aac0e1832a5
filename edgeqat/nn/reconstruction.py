"""Block-wise reconstruction (BRECQ 2102.05426, EfficientQAT 2407.11062): a decoder layer trains
alone, weights and scales, until its output is the float model's, on the inputs that the quantized
layers before it give.

    L = mean_t ||y_t - y*_t||^2 / ||y*_t||^2

Tokens count alike: the few of huge norm at the start of a text would be all that a plain squared
error sees. Adam's steps are measured in quantization steps, so that one rate fits every matrix.

Weights end where their codes are.

Legend: B batch, T tokens, H hidden.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from edgeqat.nn.linear import QuantLinear
from edgeqat.quant.quantizer import Quantizer
from edgeqat.recipe.train import BlockSection

_BETAS = (0.9, 0.95)
_SCALE_RATE = 0.02  # of a scale, for a rate of one quantization step
_WARMUP = 0.1  # of all steps

Call = Callable[[int, Tensor], Tensor]


def reconstruct(
    layer: nn.Module,
    call: Call,
    inputs: list[Tensor],
    targets: list[Tensor],
    section: BlockSection,
    masks: list[Tensor | None],
) -> tuple[float, float]:
    """Train a prepared decoder layer in place; call(number, x) runs it on x (B, T, H) of a batch,
    whose tokens count where its mask (B, T) is true. Returns the loss of the first and of the last
    pass.
    """
    groups = list(_groups(layer, section.learning_rate))
    if not groups:
        return 0.0, 0.0
    optimizer = torch.optim.Adam(groups, betas=_BETAS, fused=True)
    rates = [group["lr"] for group in optimizer.param_groups]
    steps, losses = section.passes * len(inputs), []
    with torch.enable_grad():
        for step in range(steps):
            number = step % len(inputs)
            share = _schedule(step / steps)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * share
            output = call(number, inputs[number].detach())
            loss = relative_error(output, targets[number], masks[number])
            loss.backward()
            optimizer.step()
            layer.zero_grad(set_to_none=True)
            losses.append(loss.item())
    _center(layer)
    size = len(inputs)
    return sum(losses[:size]) / size, sum(losses[-size:]) / size


@torch.no_grad()
def _center(layer: nn.Module) -> None:
    """Put every weight where its code is. Rounded weights that train come to lie at the thresholds
    between two codes (2203.11086), a fifth of a matrix within a hundredth of a step: the first
    steps of later training would turn thousands of them.
    """
    for module, _ in _trained(layer):
        module.weight.copy_(module.weight_quantizer(module.weight))


def relative_error(output: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean over tokens of ||y - y*||^2 / ||y*||^2 of outputs (B, T, H), a scalar in float32; with a
    mask (B, T) over those where it is true.
    """
    goal = target.float()
    error = (output.float() - goal).square().sum(-1)
    relative = error / goal.square().sum(-1).clamp(min=1e-12)
    return relative.mean() if mask is None else relative[mask.to(relative.device)].mean()


def _schedule(done: float) -> float:
    if done < _WARMUP:
        return done / _WARMUP
    return 0.5 * (1 + math.cos(math.pi * (done - _WARMUP) / (1 - _WARMUP)))


def _groups(layer: nn.Module, rate: float) -> Iterator[dict[str, Any]]:
    """A group of parameters for each matrix and for its scales, with rates of their own size."""
    for module, scales in _trained(layer):
        size = float(scales[0].detach().abs().mean())
        yield {"params": [module.weight], "lr": rate * size}
        yield {"params": scales, "lr": rate * size * _SCALE_RATE}


def _trained(layer: nn.Module) -> Iterator[tuple[QuantLinear, list[nn.Parameter]]]:
    """The linear layers whose scales are learned, with those."""
    for module in layer.modules():
        if isinstance(module, QuantLinear) and isinstance(module.weight_quantizer, Quantizer):
            scales = list(module.weight_quantizer.scale_parameters())
            if scales:
                yield module, scales
