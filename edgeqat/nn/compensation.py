"""The error-compensated start of a language model: decoder layer by decoder layer, each on what the
quantized layers before it give (quant/compensation has the equations).

Once a layer's inputs have been seen with its weights in float, all its weights are rounded, and its
output goes on. Hidden states and one layer's second moments are all that is held. At last the head
is rounded on what the last norm gives it. Where it is the embedding too, whose rows are read one by
one, all inputs count as much as its own: (H / mean(diag H) + I) in the place of H.

Legend: B batch, T tokens, H hidden, I inputs of a matrix.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from edgeqat.errors import ModelError
from edgeqat.nn.adaptive import AdaptiveQuantizer
from edgeqat.nn.head_balance import balance_layer
from edgeqat.nn.heads import head, last_norm
from edgeqat.nn.layers import attentions
from edgeqat.nn.linear import QuantLinear
from edgeqat.nn.observation import check_ranges, observed, watching
from edgeqat.nn.precision import uses_bf16
from edgeqat.nn.reconstruction import Call, reconstruct
from edgeqat.nn.switch import quantizers_disabled
from edgeqat.nn.walk import Run, Walk
from edgeqat.quant import compensation
from edgeqat.quant.hadamard import rotate
from edgeqat.quant.lsq import WeightQuantizer
from edgeqat.quant.quantizer import Quantizer
from edgeqat.recipe.train import BlockSection

logger = logging.getLogger(__name__)

_ROUNDING_TOKENS = 2**15
_ROWS = 2**14  # of the head, rounded at a time


def waiting(model: nn.Module) -> list[QuantLinear]:
    """The linear layers whose weights are still to be rounded with compensation."""
    return [
        layer
        for layer in model.modules()
        if isinstance(layer, QuantLinear)
        and getattr(layer.weight_quantizer, "awaits_compensation", False)
    ]


def set_rounded(layer: nn.Module) -> None:
    """Say that the weight of a linear layer waits for nothing any more."""
    quantizer: Any = layer.weight_quantizer
    quantizer.awaits_compensation = False


@torch.no_grad()
def compensate(
    model: nn.Module,
    batches: Iterable[Any],
    run: Run,
    blocks: BlockSection | None = None,
    observe: bool = False,
) -> None:
    """Set weights and scales of the layers that wait for it, in place, on a few batches; with
    `blocks` each decoder layer is then trained alone (nn/reconstruction). `observe`: before, heads
    are balanced and the quantizers that watch values first are set, layer by layer.
    """
    begun, adaptive = time.monotonic(), _adaptive(model)
    device = next(model.parameters()).device.type
    bf16 = uses_bf16(None if blocks is None else blocks.bf16, model, device)
    walk = Walk(model, batches, run, bf16)
    _warn_of_few(model, sum(x.shape[0] * x.shape[1] for x in walk.hidden))
    floating, quantized = list(walk.hidden), list(walk.hidden)
    section = blocks if blocks is not None and blocks.passes else None
    watched = _watched(walk.hidden) if section is not None else range(len(walk.hidden))
    walk.hidden.clear()  # what a layer gives takes the place of what it got
    losses: list[tuple[float, float]] = []
    for layer in walk.layers:
        inputs = _Inputs(waiting(layer))
        call = partial(walk.call, layer)
        if section is not None:
            with quantizers_disabled(layer):
                _pass_on(call, floating)
        if observe:
            with quantizers_disabled(layer):
                balance_layer(walk, layer, quantized)
            with quantizers_disabled(layer, (WeightQuantizer,)):
                _observe(walk, layer, quantized, watched)
            check_ranges(model)
        with quantizers_disabled(layer, (WeightQuantizer, *adaptive)):
            for number in watched:
                with inputs.watched(walk.masks[number]):
                    call(number, quantized[number])
        inputs.round_weights()
        with quantizers_disabled(layer, adaptive):
            if section is not None:
                losses.append(reconstruct(layer, call, quantized, floating, section, walk.masks))
            _pass_on(call, quantized)
    for layer in waiting(model):  # outside of decoder layers
        if layer is head(model) and not adaptive:
            _round_head(model, layer, [quantized[number] for number in watched])
        set_rounded(layer)
    if losses:
        before, last = (sum(column) / len(losses) for column in zip(*losses, strict=True))
        logger.info("blocks trained one by one: relative error %.5f -> %.5f", before, last)
    logger.info("weights rounded with compensation in %.0f s", time.monotonic() - begun)


def _pass_on(call: Call, hidden: list[Tensor]) -> None:
    """Put what a layer gives in the place of its inputs (B, T, H)."""
    for number, x in enumerate(hidden):
        hidden[number] = call(number, x)


def _watched(hidden: list[Tensor]) -> Sequence[int]:
    """Numbers of the batches that weights are rounded on where more text is there to train on:
    more would take time, and round no better (docs/log/quantizers.md).
    """
    tokens = sum(x.shape[0] * x.shape[1] for x in hidden)
    step = -(-tokens // _ROUNDING_TOKENS)
    return range(0, len(hidden), step)


def _observe(walk: Walk, layer: nn.Module, hidden: list[Tensor], numbers: Sequence[int]) -> None:
    """Set the quantizers of a decoder layer that watch values first, on batches of these numbers;
    where those are keys and values alone, nothing behind its attention is computed.
    """
    watchers = watching(layer)
    if not watchers:
        return
    attention = next((module for _, module in attentions(layer)), layer)
    with observed(watchers):
        until = attention if watchers == watching(attention) else layer
        walk.feed(layer, hidden, until, numbers)


def _round_head(model: nn.Module, layer: QuantLinear, hidden: list[Tensor]) -> None:
    """Round the head on hidden states (B, T, H) of the last decoder layer, some rows at a time."""
    norm, quantizer = last_norm(model), layer.weight_quantizer
    if norm is None or not isinstance(quantizer, WeightQuantizer):
        return
    width = layer.in_features
    hessian, tokens = hidden[0].new_zeros(width, width, dtype=torch.float32), 0
    for x in hidden:
        values = layer.input_quantizer(rotate(norm(x), layer.rotation)).reshape(-1, width).float()
        hessian.addmm_(values.t(), values)
        tokens += len(values)
    hessian /= tokens
    if any(module.weight is layer.weight for module in model.modules() if _is_table(module)):
        hessian.diagonal().add_(hessian.diagonal().mean())
    scales: list[Tensor] = []
    for rows in layer.weight.split(_ROWS):
        shape = (len(rows), width)
        part = WeightQuantizer(
            shape, quantizer.grid.bits, quantizer.granularity, quantizer.group_size
        )
        part.to(rows.device)
        (latent,), _ = compensation.compensate([part], [rows], hessian)
        rows.copy_(latent)
        scales.append(part.scale)
    quantizer.set_scale(torch.cat(scales))


def _is_table(module: nn.Module) -> bool:
    return isinstance(module, nn.Embedding)


class _Inputs:
    """Second moments of the inputs of linear layers; those that read the same tensor share them."""

    def __init__(self, layers: list[QuantLinear]) -> None:
        self._layers = layers
        self._groups: dict[QuantLinear, list[QuantLinear]] = {}
        self._hessians: dict[QuantLinear, Tensor] = {}
        self._tokens: dict[QuantLinear, int] = {}

    @contextmanager
    def watched(self, mask: Tensor | None) -> Iterator[None]:
        """Add the inputs of the forward pass inside, as the layers multiply with them; of tokens
        where `mask` (B, T) is true.
        """
        sources: dict[tuple[int, int], QuantLinear] = {}
        kept: list[Tensor] = []  # no other tensor may take the id of one that was read

        def keep(layer: Any, args: tuple[Any, ...]) -> None:
            leader = sources.setdefault((id(args[0]), layer.rotation), layer)
            members = self._groups.setdefault(leader, [])
            if layer not in members:
                members.append(layer)
            if leader is layer:
                kept.append(args[0])
                with torch.autocast(args[0].device.type, enabled=False):
                    self._add(layer, layer.input_quantizer(rotate(args[0], layer.rotation)), mask)

        handles = [layer.register_forward_pre_hook(keep) for layer in self._layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _add(self, layer: QuantLinear, values: Tensor, mask: Tensor | None) -> None:
        values = values.detach() if mask is None else values.detach()[mask.to(values.device)]
        x = values.reshape(-1, values.shape[-1]).float()
        if layer not in self._hessians:
            self._hessians[layer] = x.new_zeros(x.shape[1], x.shape[1])
        self._hessians[layer].addmm_(x.t(), x)
        self._tokens[layer] = self._tokens.get(layer, 0) + len(x)

    def round_weights(self) -> None:
        """Round the weights of every layer that was called."""
        for leader, hessian in self._hessians.items():
            alike: dict[Any, list[QuantLinear]] = {}
            for layer in self._groups[leader]:
                quantizer: Any = layer.weight_quantizer
                kind = quantizer.grid, quantizer.group_size, quantizer.scale.shape[1]
                alike.setdefault(kind, []).append(layer)
            for layers in alike.values():
                _round(layers, hessian / self._tokens[leader])
        self._hessians = {}


def _round(layers: list[QuantLinear], hessian: Tensor) -> None:
    quantizers: list[Any] = [layer.weight_quantizer for layer in layers]
    weights = [layer.weight for layer in layers]
    if not hessian.isfinite().all():
        rows, columns = weights[0].shape
        raise ModelError(
            f"calibration: the inputs of a layer ({rows} x {columns}) are not finite; look for "
            "values beyond float32 in the model"
        )
    latent, damping = compensation.compensate(quantizers, weights, hessian)
    for layer, weight in zip(layers, latent, strict=True):
        layer.weight.copy_(weight)
        set_rounded(layer)
    if damping > compensation.DAMPING:
        logger.warning(
            "calibration: the inputs of a layer (%d x %d) leave no inverse; damped by %g of their "
            "mean square instead of %g",
            *layers[0].weight.shape, damping, compensation.DAMPING,
        )  # fmt: skip


def _adaptive(model: nn.Module) -> tuple[type[Quantizer], ...]:
    """Quantizers of activations that stay off where tokens have two widths: which one a token takes
    is decided by the layer before.
    """
    if any(isinstance(module, AdaptiveQuantizer) for module in model.modules()):
        kinds = {type(m) for m in model.modules() if isinstance(m, Quantizer)}
        return tuple(kind for kind in kinds if not issubclass(kind, WeightQuantizer))
    return ()


def _warn_of_few(model: nn.Module, tokens: int) -> None:
    widest = max(layer.in_features for layer in waiting(model))
    if tokens < widest:
        logger.warning(
            "calibration: %d tokens are few for layers of %d inputs; give more text, or raise "
            "quant.activation.calibration_batches",
            tokens, widest,
        )  # fmt: skip
