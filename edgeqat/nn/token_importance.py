"""Token importance: the attention that a token pays to the first one decides its width in the
layers that follow.

    s_i = mean over heads of exp(q_i . k_0 * scale - logsumexp_i),    m_i = s_i * (i + 1)
    high  <=>  m_i >= threshold           larger = more important; s falls with the position, m does
    not

q and k are the quantized ones, k_0 is the first real token of the sequence. The threshold of a
layer is the running quantile of m at the wanted share: observed in training, moved once per step,
frozen at convert. The decision needs nothing but what is behind the token, so that one pass, a
prompt in pieces and decoding agree, whatever else is in the batch. (The public reference ranks
whole sequences, which sees the future and makes every decoded token 8 bit.)

Controls: `reversed` takes the least important, `random` a fixed scatter of positions that differs
per layer, `layers` whole layers, evenly spaced, and a scatter in one of them to meet the share
exactly.

Legend: L layers, B batch, N query heads, K key heads, T queries, S keys, D head_dim.
Source: EdgeQAT 2402.10787, section 3.4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeqat.errors import ModelError
from edgeqat.families import window_of
from edgeqat.nn.adaptive import TokenWidths
from edgeqat.quant.exact import is_exact
from edgeqat.recipe.quant import AdaptiveSection

MEASURED = ("importance", "reversed")  # rules with thresholds
_RATE = 0.1  # how far one step's quantile moves the threshold
_MODULUS = 1 << 16


class TokenImportance(nn.Module):
    """At one attention layer: measures tokens and sets the widths of the layers that follow."""

    threshold: Tensor | None

    def __init__(self, adaptive: AdaptiveSection, followers: list[TokenWidths]) -> None:
        super().__init__()
        assert adaptive.share is not None
        self.rule, self.share = adaptive.rule, adaptive.share
        self.__dict__["followers"] = followers
        self.gathering = False
        self._measures: list[Tensor] = []
        threshold = None
        if self.rule in MEASURED:
            starts_low = (self.rule == "importance") == (self.share > 0)
            threshold = torch.full((1,), float("-inf") if starts_low else float("inf"))
        self.register_buffer("threshold", threshold)

    @torch.no_grad()
    def forward(
        self,
        query: Tensor,
        key: Tensor,
        mask: Tensor | None,
        position: Tensor,
        scale: float,
        real: Tensor,
    ) -> None:
        """Decide on the T newest tokens from q (B, N, T, D) and k (B, K, S, D); `position` (B or 1,
        S) counts real tokens, -1 is padding, `real` (B, T) marks the new ones that are no padding.
        """
        newest = position[:, -query.shape[2] :]
        if self.threshold is None:
            for widths in self.followers:
                widths.high = scattered(newest, widths.layer, widths.share)
            return
        first = (position == 0).int().argmax(dim=1)
        measure = attention_to_first(query, key, mask, first, scale) * (newest + 1)
        if self.gathering:
            self._measures.append(measure[real])
        above = measure >= self.threshold
        for widths in self.followers:
            widths.high = above if self.rule == "importance" else ~above

    def quantile(self) -> Tensor | None:
        """The quantile (1,) of what was gathered, which is forgotten; None: nothing was."""
        measures, self._measures = self._measures, []
        if not measures or not 0 < self.share < 1:
            return None
        level = 1 - self.share if self.rule == "importance" else self.share
        return torch.cat(measures).quantile(level).reshape(1)

    def move(self, quantile: Tensor, rate: float) -> None:
        """Move the threshold towards a quantile; the first one becomes the threshold."""
        assert self.threshold is not None
        moved = self.threshold.lerp(quantile, rate)
        self.threshold.copy_(torch.where(self.threshold.isfinite(), moved, quantile))

    def extra_repr(self) -> str:
        return f"rule={self.rule}, share={self.share}"


def attention_to_first(
    query: Tensor, key: Tensor, mask: Tensor | None, first: Tensor, scale: float
) -> Tensor:
    """Attention probability (B, T) of each query on key `first` (B or 1,), averaged over the heads,
    without a matrix of T x S: it is the attention over values that are 1 there and 0 elsewhere.
    """
    batch, heads, tokens, _ = query.shape
    kind = torch.float64 if is_exact() else torch.float32
    value = torch.zeros(batch, 1, *key.shape[2:], device=key.device, dtype=kind)
    value[torch.arange(batch), 0, first.expand(batch), 0] = 1
    with torch.autocast(query.device.type, enabled=False):
        probability = F.scaled_dot_product_attention(
            query.to(kind),
            key.to(kind).repeat_interleave(heads // key.shape[1], dim=1),
            value.expand(-1, heads, -1, -1),
            attn_mask=mask,
            is_causal=mask is None and tokens > 1,
            scale=scale,
        )
    return probability[..., 0].mean(dim=1).float()


def scattered(position: Tensor, layer: int, share: float) -> Tensor:
    """A fixed scatter of positions (B, T) at a share, another one in each layer."""
    mixed = (position + 1) * 40503 + (layer + 1) * 30011
    mixed = (mixed ^ (mixed >> 7)) * 48271 % 2147483647
    mixed = (mixed ^ (mixed >> 11)) * 69621 % 2147483647
    return (mixed >> 8) % _MODULUS < round(share * _MODULUS)


def plan(count: int, adaptive: AdaptiveSection, source: int = 0) -> list[TokenWidths]:
    """Widths of `count` decoder layers; those up to `source`, the first that sees the first token
    all the time, are high whatever the rule.
    """
    share = adaptive.share or 0.0
    if adaptive.rule != "layers":
        return [TokenWidths(layer, share) for layer in range(count)]
    start, free = source + 1, count - source - 1
    whole, rest = divmod(share * free, 1)
    chosen = {start + int((n + 0.5) * free / whole) for n in range(int(whole))}
    shares = [1.0 if layer in chosen else 0.0 for layer in range(count)]
    if rest > 0:
        shares[next(n for n in range(start, count) if n not in chosen)] = rest
    return [TokenWidths(layer, value) for layer, value in enumerate(shares)]


def first_source(config: Any, count: int) -> int:
    """The first of `count` layers that sees the first token all the time."""
    full = [layer for layer in range(count - 1) if not _is_sliding(config, layer)]
    if not full:
        raise ModelError(
            "quant.adaptive: no attention layer of the model sees the first token all the time "
            "(sliding windows); leave adaptive widths out"
        )
    return full[0]


def followers(config: Any, widths: list[TokenWidths]) -> dict[int, list[TokenWidths]]:
    """Which layers listen to which: each to the last layer before it that sees the first token."""
    listeners: dict[int, list[TokenWidths]] = {}
    source = None
    for layer, layer_widths in enumerate(widths):
        if source is not None:
            listeners.setdefault(source, []).append(layer_widths)
        if not _is_sliding(config, layer):
            source = layer
    return listeners


@contextmanager
def observing(model: nn.Module) -> Iterator[None]:
    """Gather measures from the forward passes in the block; the recomputation of gradient
    checkpointing runs outside of it and counts nothing twice.
    """
    importances = [module for module in model.modules() if isinstance(module, TokenImportance)]
    for module in importances:
        module.gathering = True
    try:
        yield
    finally:
        for module in importances:
            module.gathering = False


@torch.no_grad()
def move_thresholds(
    model: nn.Module, mean: Callable[[Tensor], Tensor] = lambda values: values, rate: float = _RATE
) -> None:
    """Move every threshold towards what its layer gathered since the last time; `mean` averages
    over processes.
    """
    importances = [module for module in model.modules() if isinstance(module, TokenImportance)]
    moves = [(module, module.quantile()) for module in importances]
    moving = [(module, value) for module, value in moves if value is not None]
    if moving:
        values = mean(torch.cat([value for _, value in moving]))
        for (module, _), value in zip(moving, values, strict=True):
            module.move(value.reshape(1), rate)


def check_thresholds(model: nn.Module) -> None:
    """Refuse thresholds that nothing has set: at such ones every token is as wide."""
    for module in model.modules():
        if not isinstance(module, TokenImportance) or module.threshold is None:
            continue
        if 0 < module.share < 1 and not module.threshold.isfinite().all():
            raise ModelError(
                "quant.adaptive: the model's thresholds were never set; run "
                "edgeqat.calibrate(model, batches) or train it first"
            )


def _is_sliding(config: Any, layer: int) -> bool:
    return window_of(config, layer) is not None
