"""Quantization of query, key and value inside attention, after RoPE.

q and k are rotated (quant/hadamard), then q is quantized per token and head at the activation
width, k and v as the KV cache stores them (quant/dynamic.CacheQuantizer): fake-quantizing here is
what makes the trained layout the served one. A token's K and V are 8 bit where it is a sink or
important (nn/token_importance), and low otherwise.

Two baselines whose caches revise what they stored live here too, in torch only (nn/kivi,
nn/zipcache). A packed cache hands over only the new keys and values; they are quantized once,
stored, and what the cache holds comes back (nn/token_store). Not here: the attention product itself
and how it reaches transformers (hf/attention), guidance.

Legend: B batch, N query heads, K key/value heads, T queries, S keys, D head_dim.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from edgeqat.errors import UsageError
from edgeqat.nn import kivi, zipcache
from edgeqat.nn.adaptive import AdaptiveQuantizer, TokenWidths
from edgeqat.nn.token_importance import TokenImportance
from edgeqat.quant import ggml
from edgeqat.quant.activation_modes import input_quantizer
from edgeqat.quant.dynamic import CacheQuantizer
from edgeqat.quant.hadamard import HEAD_BLOCK, block_size, rotate
from edgeqat.recipe.quant import QuantSection
from edgeqat.scheme import FLOAT_BITS, HIGH_BITS

IMPLEMENTATION = "edgeqat"  # of attention, in transformers' registry (hf/attention)


class Waiting(Protocol):
    """A packed cache that has handed over new keys and values and waits for their widths."""

    seen: int  # tokens that it was given before

    @property
    def stored(self) -> int:
        """Tokens that it holds and gives to attention."""

    def append(self, key: Tensor, value: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Store new k, v (B, K, T, D), those `high` (B, T) at 8 bit; all of them come back."""


class Newest(NamedTuple):
    """The T new tokens of a call, each (B, T): place in the sequence, is kept at 8 bit, is no
    padding.
    """

    position: Tensor
    high: Tensor
    real: Tensor


class AttentionQuantizer(nn.Module):
    """Quantizers of q (B, N, T, D), k and v (B, K, S, D) of one attention layer."""

    importance: TokenImportance | None
    newest: Newest | None  # of the last call
    pair_scale: Tensor | None  # (K, D): what a balanced model's keys were multiplied by

    def __init__(
        self, quant: QuantSection, head_dim: int, kv_heads: int, pairs: bool = False
    ) -> None:
        """pairs: llama.cpp interleaves the halves of this architecture's heads."""
        super().__init__()
        scheme = quant.bits()
        cached = scheme.kv_bits < FLOAT_BITS
        self.rotation = block_size(head_dim, HEAD_BLOCK) if cached and quant.kv.rotate_keys else 0
        self.value_rotation, self.pairs = 0, False
        self.sink_tokens = quant.kv.sink_tokens
        self.query: nn.Module = nn.Identity()
        if scheme.activation_bits < FLOAT_BITS:
            self.query = input_quantizer(quant.activation.mode, scheme.activation_bits)
        self.key: CacheQuantizer | None = None
        self.value: CacheQuantizer | None = None
        if cached and quant.kv.llama_cpp:
            self.rotation, self.value_rotation = ggml.rotations(head_dim)
            self.pairs = pairs
            self.key = ggml.BlockCacheQuantizer(scheme.kv_bits, head_dim)
            self.value = ggml.BlockCacheQuantizer(scheme.kv_bits, head_dim)
        elif cached:
            heads = kv_heads if quant.kv.key_offset else None
            minmax = quant.kv.minmax
            self.key = CacheQuantizer(scheme.kv_bits, head_dim, heads, minmax)
            self.value = CacheQuantizer(scheme.kv_bits, head_dim, minmax=minmax)
        self.register_buffer("pair_scale", None, persistent=False)
        self.kivi, self.kv_bits = quant.kv.kivi, scheme.kv_bits
        self.salient_share: float | None = None  # of ZipCache's rule
        self.importance = None
        self.widths: TokenWidths | None = None
        self.waiting: Waiting | None = None
        self.newest = None
        self.position: Tensor | None = None
        self.reached = False  # by the layer's forward pass (nn/reach)

    def adapt(self, widths: TokenWidths, importance: TokenImportance | None) -> None:
        """Give tokens the widths of this layer, and let it decide on those of others."""
        self.query = adapted(self.query, widths)
        self.widths, self.importance = widths, importance

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        positions: Tensor | None = None,
        scale: float | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Fake-quantized q, k, v; q and k in the rotated basis and k without its offset, which
        changes no attention weight.

        `mask` (B, 1, T, S) bool says which keys a query sees (None: causal); `positions` (B, T) of
        the queries is given for sliding-window layers; `scale` multiplies the logits.
        """
        waiting, self.waiting = self.waiting, None
        self.reached = True
        count = key.shape[2] + (waiting.stored if waiting else 0)
        tokens, scale = query.shape[2], scale or query.shape[-1] ** -0.5
        if mask is not None and mask.shape[-1] != count:
            raise UsageError(
                "cache: it was made for another model, or for one that this is a copy of; make one "
                "with edgeqat.KVCache(model)"
            )
        real = real_tokens(count, query, mask)
        if self.needs_order and tokens < count:
            _refuse_spare_keys(real, tokens, mask is None)
        whole = waiting is not None and waiting.seen == waiting.stored
        position = token_positions(real, None if whole else positions)
        if mask is not None and tokens == count:
            position = in_samples(position, mask)
        query, key = self._turned(query), self._turned(key)
        value = rotate(value, self.value_rotation)
        query = self.query(query)
        written = key.shape[2] if self.key is not None and self.key.enabled else tokens
        high = self.high_tokens(position[:, -written:])
        if self.salient_share is not None:
            high = high | self._salient(query, key, position, scale)
        newest = position[:, -tokens:].expand(len(query), -1)
        self.position = position
        self.newest = Newest(
            newest, high[:, -tokens:].expand_as(newest), real[:, -tokens:].expand_as(newest)
        )
        if self.key is not None and self.value is not None and self.kivi is None:
            if waiting is None:
                key, value = self.key(key, high), self.value(value, high)
            else:
                key, value = waiting.append(key, value, high)
        value = rotate(value, self.value_rotation)
        if self.importance is not None:
            self.importance(query, key, mask, position, scale, self.newest.real)
        return query, key, value

    @property
    def is_on(self) -> bool:
        """Whether it quantizes anything."""
        return self.key is not None or not isinstance(self.query, nn.Identity)

    @property
    def revises(self) -> bool:
        """Whether it stands for a baseline whose cache changes what it has stored."""
        return self.kivi is not None or self.salient_share is not None

    @property
    def needs_order(self) -> bool:
        """Whether the newest keys must be those of the queries."""
        return self.kivi is not None or self.importance is not None

    @property
    def attends(self) -> bool:
        """Whether the attention product is this baseline's own (attend)."""
        return self.kivi is not None and self.key is not None and self.key.enabled

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float
    ) -> Tensor:
        """Attention (B, N, T, D) over what forward() gave, where each query sees its own version of
        k and v.
        """
        assert self.kivi is not None and self.position is not None
        return kivi.attend(query, key, value, self.position, mask, self.kv_bits, self.kivi, scale)

    def high_tokens(self, position: Tensor) -> Tensor:
        """Which tokens (B or 1, T) at those positions are kept at 8 bit: sinks, important ones."""
        sinks = (position >= 0) & (position < self.sink_tokens)
        if self.widths is None:
            return sinks
        if self.widths.high is None:
            return torch.ones_like(sinks)
        if position.shape[1] != self.widths.high.shape[1]:
            raise UsageError(
                "cache: an adaptive model's tokens keep the width they were written with, which "
                "this cache does not hold; use generate() or edgeqat.KVCache(model)"
            )
        return sinks | self.widths.high

    def _salient(self, query: Tensor, key: Tensor, position: Tensor, scale: float) -> Tensor:
        if key.shape[2] != query.shape[2]:
            raise UsageError(
                "adaptive.rule: zipcache looks at a whole sequence at once and cannot decode; "
                "evaluate it in one pass"
            )
        return zipcache.salient(query, key, position, self.salient_share or 0.0, scale)

    def basis(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Float q and k in the basis that forward() quantizes them in: balanced, rotated, k without
        its offset.
        """
        query, key = self._scaled(query, -1), self._scaled(key, 1)
        query, key = self._turned(query), self._turned(key)
        if self.key is not None and self.key.offset is not None:
            key = key - self.key.offset[:, None].to(key.dtype)
        return query, key

    def float_basis(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """The inverse of basis(): q and k that forward() gave, as the float model has them."""
        if self.key is not None and self.key.offset is not None:
            key = key + self.key.offset[:, None].to(key.dtype)
        turned = [rotate(vectors, self.rotation) for vectors in (query, key)]
        query, key = [ggml.in_halves(vectors) if self.pairs else vectors for vectors in turned]
        return self._scaled(query, 1), self._scaled(key, -1)

    def _scaled(self, values: Tensor, power: int) -> Tensor:
        """q or k (B, N, T, D) times the scale of its pairs to a power (nn/head_balance)."""
        if self.pair_scale is None:
            return values
        shared = values.shape[1] // len(self.pair_scale)
        scale = self.pair_scale.repeat_interleave(shared, 0)[:, None]
        return values * (scale**power).to(values.dtype)

    def _turned(self, values: Tensor) -> Tensor:
        """q or k in the order and rotation they are quantized in."""
        return rotate(ggml.interleaved(values) if self.pairs else values, self.rotation)


def adapted(quantizer: Any, widths: TokenWidths) -> nn.Module:
    """An input quantizer with a second one at 8 bit beside it, where it has fewer bits."""
    if isinstance(quantizer, nn.Identity) or quantizer.grid.bits >= HIGH_BITS:
        return quantizer
    kind: type = type(quantizer)
    return AdaptiveQuantizer(quantizer, kind(HIGH_BITS).to(_device(quantizer)), widths)


def real_tokens(count: int, query: Tensor, mask: Tensor | None) -> Tensor:
    """Which of the `count` keys (B or 1, S) are no padding: a new one (T of q (B, N, T, D)) sees
    itself, an older one is seen by the first new query, as far as its window reaches.
    """
    if mask is None:
        return torch.ones(1, count, dtype=torch.bool, device=query.device)
    seen = mask[:, 0] if mask.dtype == torch.bool else mask[:, 0] >= 0
    older = count - query.shape[2]
    return torch.cat([seen[:, 0, :older], seen.diagonal(older, dim1=1, dim2=2)], dim=1)


def token_positions(real: Tensor, positions: Tensor | None = None) -> Tensor:
    """Positions (B or 1, S) of the keys among the real tokens of their sequence, -1 of padding,
    wherever it is; `real` (B or 1, S) marks what is none.

    Of tokens that a sliding window has dropped, `positions` (B, T) of the queries tell how many.
    """
    position = real.cumsum(dim=1) - 1
    if positions is not None and positions.shape[1] < real.shape[1]:
        tokens = positions.shape[1]
        ahead = (positions - position[:, -tokens:]) * real[:, -tokens:]
        position = position + ahead.amax(dim=1, keepdim=True)
    return position.masked_fill(~real, -1)


def in_samples(position: Tensor, mask: Tensor) -> Tensor:
    """Positions (B or 1, T) of a whole sequence, counted anew where a token does not see the one
    before it: there a sample of its own begins.
    """
    seen = mask[:, 0] if mask.dtype == torch.bool else mask[:, 0] >= 0
    begins = torch.ones_like(position, dtype=torch.bool).expand(len(seen), -1).clone()
    begins[:, 1:] = ~seen.diagonal(-1, dim1=1, dim2=2) & (position[:, :-1] >= 0)
    first = position.expand_as(begins).masked_fill(~begins, 0).cummax(dim=1).values
    return (position - first).masked_fill(position < 0, -1)


def _refuse_spare_keys(real: Tensor, tokens: int, causal: bool) -> None:
    """A static cache's keys behind the newest are seen by no query; without a mask (`causal`) the
    first ones are those of several queries.
    """
    spare = tokens > 1 if causal else not bool(real[:, -tokens:].any())
    if spare:
        raise UsageError(
            "cache: a static cache hands over keys that are not written yet, and this model tells "
            "tokens by their place; use generate() without cache_implementation"
        )


def _device(module: nn.Module) -> torch.device | None:
    return next((parameter.device for parameter in module.parameters()), None)
