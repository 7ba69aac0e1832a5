"""Quantization of query, key and value inside attention, after RoPE.

q and k are rotated (quant/hadamard), then q is quantized per token and head at the activation
width, k and v as the KV cache stores them (quant/dynamic.CacheQuantizer): fake-quantizing here is
what makes the trained layout the served one. Not here: the attention product itself and how it
reaches transformers (hf/attention), guidance, the packed cache.

Legend: B batch, N query heads, K key/value heads, T tokens, D head_dim.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgeqat.quant.dynamic import CacheQuantizer, DynamicQuantizer
from edgeqat.quant.hadamard import HEAD_BLOCK, block_size, rotate
from edgeqat.quant.lsq import StaticQuantizer
from edgeqat.recipe import QuantSection
from edgeqat.scheme import FLOAT_BITS


class AttentionQuantizer(nn.Module):
    """Quantizers of q (B, N, T, D), k and v (B, K, S, D) of one attention layer."""

    def __init__(self, quant: QuantSection, head_dim: int, kv_heads: int) -> None:
        super().__init__()
        scheme = quant.bits()
        cached = scheme.kv_bits < FLOAT_BITS
        self.rotation = block_size(head_dim, HEAD_BLOCK) if cached and quant.kv.rotate_keys else 0
        self.sink_tokens = quant.kv.sink_tokens
        self.query: nn.Module = nn.Identity()
        if scheme.activation_bits < FLOAT_BITS:
            static = quant.activation.mode == "static"
            kind = StaticQuantizer if static else DynamicQuantizer
            self.query = kind(scheme.activation_bits)
        self.key: CacheQuantizer | None = None
        self.value: CacheQuantizer | None = None
        if cached:
            heads = kv_heads if quant.kv.key_offset else None
            self.key = CacheQuantizer(scheme.kv_bits, head_dim, heads)
            self.value = CacheQuantizer(scheme.kv_bits, head_dim)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        positions: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Fake-quantized q, k, v; q and k in the rotated basis and k without its offset, which
        changes no attention weight.

        `mask` (B, 1, T, S) bool says which keys a query sees (None: causal); `positions` (B, T) of
        the queries is given for sliding-window layers.
        """
        query, key = rotate(query, self.rotation), rotate(key, self.rotation)
        query = self.query(query)
        if self.key is not None and self.value is not None:
            sinks = sink_tokens(key, mask, self.sink_tokens, positions)
            key, value = self.key(key, sinks), self.value(value, sinks)
        return query, key, value

    def basis(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Float q and k in the basis that forward() quantizes them in: rotated, k without its
        offset.
        """
        query, key = rotate(query, self.rotation), rotate(key, self.rotation)
        if self.key is not None and self.key.offset is not None:
            key = key - self.key.offset[:, None].to(key.dtype)
        return query, key


def sink_tokens(
    key: Tensor, mask: Tensor | None, count: int, positions: Tensor | None = None
) -> Tensor:
    """Which of the S keys are among the first `count` real tokens of their sequence: (B or 1, S)
    bool.

    Under left padding the first real token is the first key that the last query sees. A sliding
    window has dropped that key in the end: there `positions` (B, T), those of the queries, tell.
    """
    position = torch.arange(key.shape[2], device=key.device)[None]
    if positions is not None:
        position = position + positions[:, -1:] - (key.shape[2] - 1)
    elif mask is not None:
        last = mask[:, 0, -1]
        seen = last if last.dtype == torch.bool else last >= 0
        position = position - seen.int().argmax(dim=-1, keepdim=True)
    return (position >= 0) & (position < count)
