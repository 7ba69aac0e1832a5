"""Heads balanced for a KV cache of few bits: what keys and values lose is evened out once, in the
weights, and nothing of it is left at run time.

A rotated row of a head is rounded with an error that is the same in all directions and grows with
its norm. Two products keep their value while the errors in them get least (Cauchy-Schwarz):

    q.k     q' = q / s, k' = s k          s_i^4 = E q_i^2 / E (k_i - E k_i)^2
    W_o v   v' = A v, W_o' = W_o A^-1     A = R D^(1/4) U^T C^(-1/2)

where C = E v v^T, U D U^T = C^(1/2) W_o^T W_o C^(1/2) summed over the query heads that read v, and
R is a Hadamard matrix. s is the same for both halves of a pair that RoPE turns. With R in the
values the output projection needs no rotation of its input.

Where query and key have norms of their own, s moves into these; where all heads have the same norm
(Qwen3), they share s.

Legend: B batch, N query heads, K key/value heads, T tokens, D head_dim.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from edgeqat.families import family_of
from edgeqat.nn.attention import AttentionQuantizer
from edgeqat.nn.heads import output, projections, separate_heads
from edgeqat.nn.layers import head_sizes
from edgeqat.nn.walk import Run, Walk
from edgeqat.quant.hadamard import HEAD_BLOCK, block_size, rotate
from edgeqat.quant.lsq import WeightQuantizer

_TOKENS = 8192  # that the moments are taken of
_LEAST = 1e-6  # of the largest: directions that hold less are taken to hold that much


def make_ready(model: nn.Module) -> None:
    """Let the attention layers of a prepared model be balanced when it is calibrated."""
    for _, attention in separate_heads(model):
        quantizer = getattr(attention, "attention_quantizer", None)
        if quantizer is not None and quantizer.key is not None:
            device = projections(attention)[1].weight.device
            quantizer.pair_scale = torch.ones(*head_sizes(attention), device=device)


def is_wanted(model: nn.Module) -> bool:
    """Whether calibration is to balance heads inside a model."""
    return any(True for _ in _ready(model))


@torch.no_grad()
def balance(model: nn.Module, batches: Iterable[Any], run: Run) -> None:
    """Balance all heads of a prepared model in place, on float activations of a few batches."""
    walk = Walk(model, batches, run)
    hidden = _enough(walk.hidden)
    for layer in walk.layers:
        balance_layer(walk, layer, hidden)
        hidden = [walk.call(layer, number, x) for number, x in enumerate(hidden)]


@torch.no_grad()
def balance_layer(walk: Walk, layer: nn.Module, hidden: list[Tensor]) -> None:
    """Balance the heads of a decoder layer whose quantizers are off, in place, on inputs (B, T, H)
    of the batches.
    """
    for attention in _ready(layer):
        quantizer = attention.attention_quantizer
        moments = _Moments(walk.masks)
        handle = quantizer.register_forward_pre_hook(moments.keep)
        try:
            walk.feed(layer, _enough(hidden), quantizer)
        finally:
            handle.remove()
        if not moments.tokens:
            continue  # it did not run
        _balance_keys(attention, quantizer, moments)
        _balance_values(attention, quantizer, moments)
        for projection in (*projections(attention), output(attention)):
            weights = getattr(projection, "weight_quantizer", None)
            if isinstance(weights, WeightQuantizer) and not weights.awaits_compensation:
                weights.initialize(projection.weight)


class _Moments:
    """Second moments of q (K, D), of k without its mean (K, D) and of v (K, D, D)."""

    def __init__(self, masks: list[Tensor | None]) -> None:
        self.tokens, self._masks, self._number = 0, masks, 0
        self._sums: list[Tensor] = []

    def keep(self, _: nn.Module, args: tuple[Any, ...]) -> None:
        """Add q (B, N, T, D), k and v (B, K, T, D) of the next batch."""
        query, key, value = (part.transpose(1, 2) for part in args[:3])
        mask = self._masks[self._number]
        self._number += 1
        real = slice(None) if mask is None else mask.to(query.device)
        query, key, value = (
            (part if mask is not None else part.flatten(0, 1))[real].double()
            for part in (query, key, value)
        )  # (tokens, heads, D)
        heads = key.shape[1]
        sums = [
            query.square().sum(0).unflatten(0, (heads, -1)).sum(1),
            key.sum(0), key.square().sum(0), torch.einsum("tka,tkb->kab", value, value),
        ]  # fmt: skip
        self._sums = [a + b for a, b in zip(self._sums, sums, strict=True)] if self._sums else sums
        self.tokens += len(key)

    @property
    def query(self) -> Tensor:
        return self._sums[0] / self.tokens

    @property
    def key(self) -> Tensor:
        mean, square = (part / self.tokens for part in self._sums[1:3])
        return (square - mean.square()).clamp(min=0)

    @property
    def value(self) -> Tensor:
        return self._sums[3] / self.tokens


def _balance_keys(attention: Any, quantizer: AttentionQuantizer, moments: _Moments) -> None:
    family = family_of(attention.config.model_type)
    norms = [getattr(attention, name) for name in family.head_norms if hasattr(attention, name)]
    energies = [_of_pairs(energy, family.adjacent) for energy in (moments.query, moments.key)]
    if norms and norms[1].weight.numel() == moments.key.shape[1]:
        energies = [energy.sum(0, keepdim=True).expand_as(energy) for energy in energies]
    query, key = (energy.clamp(min=_floor(energy)) for energy in energies)
    scale = (query / key).pow(0.25)
    scale = scale / scale.log().mean(1, keepdim=True).exp()
    scale = scale.repeat_interleave(2, 1) if family.adjacent else scale.repeat(1, 2)  # (K, D)
    assert quantizer.pair_scale is not None
    quantizer.pair_scale.mul_(scale)
    queries, keys, _ = projections(attention)
    shared = queries.out_features // keys.out_features
    factors = 1 / scale.repeat_interleave(shared, 0).reshape(-1), scale.reshape(-1)
    for norm, rows in zip(norms, factors, strict=False):
        gain = norm.weight + family.gain
        norm.weight.copy_(gain * rows[: len(gain)] - family.gain)
    if norms:
        return
    for layer, rows in zip((queries, keys), factors, strict=True):
        layer.weight.mul_(rows[:, None])
        if layer.bias is not None:
            layer.bias.mul_(rows)


def _balance_values(attention: Any, quantizer: AttentionQuantizer, moments: _Moments) -> None:
    values, reader = projections(attention)[2], output(attention)
    moment = moments.value
    heads, size = moment.shape[:2]
    rotation = getattr(reader, "rotation", 0)
    columns = rotate(reader.weight.double(), rotation).view(len(reader.weight), heads, -1, size)
    readers = torch.einsum("okga,okgb->kab", columns, columns)
    block = 1 if quantizer.value_rotation else block_size(size, HEAD_BLOCK)
    turn = torch.stack([_basis(*pair, block) for pair in zip(moment, readers, strict=True)])
    back = torch.linalg.inv(turn)
    columns = torch.einsum("okga,kab->okgb", columns, back).reshape(reader.weight.shape)
    reader.weight.copy_(rotate(columns, rotation))
    rows = values.weight.double().view(heads, size, -1)
    values.weight.copy_((turn @ rows).reshape(values.weight.shape))
    if values.bias is not None:
        bias = values.bias.double().view(heads, size, 1)
        values.bias.copy_((turn @ bias).reshape(values.bias.shape))


def _basis(moment: Tensor, readers: Tensor, block: int) -> Tensor:
    """A (D, D) of the module's equation, of the values' old mean square."""
    if not (moment.trace() and readers.trace()):
        return torch.eye(len(moment)).to(moment)  # a head that writes or is read nowhere
    energy, turn = torch.linalg.eigh(moment)
    root = energy.clamp(min=_floor(energy)).sqrt()
    half, inverse = (turn * root @ turn.t(), turn / root @ turn.t())
    energy, turn = torch.linalg.eigh(half @ readers @ half)
    basis = (turn * energy.clamp(min=_floor(energy)).pow(0.25)).t() @ inverse
    basis = rotate(basis.t(), block).t()
    return basis * (moment.trace() / (basis @ moment @ basis.t()).trace()).sqrt()


def _enough(hidden: list[Tensor]) -> list[Tensor]:
    """As many of the inputs (B, T, H) as moments are taken of."""
    tokens, count = 0, 0
    while count < len(hidden) and tokens < _TOKENS:
        tokens += hidden[count].shape[0] * hidden[count].shape[1]
        count += 1
    return hidden[:count]


def _floor(energy: Tensor) -> float:
    largest = float(energy.max())
    return largest * _LEAST if largest > 0 else 1.0


def _of_pairs(energy: Tensor, adjacent: bool) -> Tensor:
    """(K, D) -> (K, D / 2): RoPE turns a dimension of the first half with one of the second, or
    with its neighbour.
    """
    return energy.unflatten(1, (-1, 2)).sum(2) if adjacent else energy.unflatten(1, (2, -1)).sum(1)


def _ready(model: nn.Module) -> Iterator[Any]:
    for _, attention in separate_heads(model):
        quantizer = getattr(attention, "attention_quantizer", None)
        if quantizer is not None and quantizer.pair_scale is not None:
            yield attention
