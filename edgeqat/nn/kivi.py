"""KIVI (2402.02750) as a baseline, in torch only: a window of newest tokens in float, keys
quantized per channel, values per token.

    keys:    groups of 32 tokens of one channel, asymmetric; a query reads those of full groups that
             ended before the window of its own group, the rest in float
    values:  groups of 32 channels of one token, asymmetric; the `window` newest ones are float
    code = round((x - min) / s),  s = (max - min) / (2^b - 1),  min and s in fp16

The cache revises tokens when they leave the window, so one query sees other numbers than the next:
both versions are held and chosen per query, with memory T x S. Quality only: nothing is packed.

Legend: B batch, N query heads, K key/value heads, T queries, S keys, D head_dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgeqat.errors import UsageError
from edgeqat.quant.functional import FP16_MIN_SCALE

GROUP = 32


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    position: Tensor,
    mask: Tensor | None,
    bits: int,
    window: int,
    scale: float,
) -> Tensor:
    """Causal attention (B, N, T, D) of q (B, N, T, D) over float k, v (B, K, S, D) as KIVI stores
    them; `position` (B or 1, S) counts real tokens, -1 is padding, `mask` (B, 1, T, S) hides more
    (sliding windows). Straight-through gradients.
    """
    if bool(((position > 0).any(1) & ~(position == 0).any(1)).any()):
        raise UsageError(
            "kv.kivi: a sliding window has dropped keys that are quantized together; evaluate in "
            "one pass (--mode one-pass)"
        )
    share = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(share, dim=1) for part in (key, value))
    old, new = position[:, None, None, :], position[:, None, -query.shape[2] :, None]
    query = query.float()
    logits = torch.where(
        old < new // window * window,
        query @ quantized_keys(key, position, bits).mT,
        query @ key.float().mT,
    )
    hidden = (old > new) | (old < 0)
    hidden = hidden if mask is None else hidden | ~mask
    weights = (logits * scale).masked_fill(hidden, torch.finfo(torch.float32).min).softmax(-1)
    past = old <= new - window
    output = (weights * past) @ quantized(value, bits) + (weights * ~past) @ value.float()
    return output.to(value.dtype)


def quantized_keys(key: Tensor, position: Tensor, bits: int) -> Tensor:
    """Keys (B, N, S, D), every channel in groups of tokens that begin at multiples of 32; they
    begin at the first token.
    """
    batch, heads, _, size = key.shape
    position = position.expand(batch, -1)
    length = -(-int(position.max() + 1) // GROUP) * GROUP + GROUP
    place = position.where(position >= 0, length - 1)  # padding: in a group of its own
    index = place[:, None, :, None].expand(-1, heads, -1, size)
    # a group that is not full is never read: what pads it does not matter
    padded = key.new_zeros(batch, heads, length, size).scatter(2, index, key)
    return quantized(padded.mT.contiguous(), bits).mT.gather(2, index)


def quantized(values: Tensor, bits: int) -> Tensor:
    """Values (..., D) asymmetric in groups of 32 along the last dimension, a shorter last one."""
    parts = [_asymmetric(part.float(), bits) for part in values.split(GROUP, dim=-1)]
    return torch.cat(parts, dim=-1)


def average_bits(bits: int, window: int, tokens: int) -> float:
    """Mean width of the values of a cache of `tokens` tokens, the float window counted as 16."""
    recent = min(window, tokens)
    return (bits * (tokens - recent) + 16 * recent) / tokens


def _asymmetric(values: Tensor, bits: int) -> Tensor:
    with torch.no_grad():
        low, high = values.amin(-1, keepdim=True), values.amax(-1, keepdim=True)
        low = low.half().float()
        scale = ((high - low) / (2**bits - 1)).clamp(min=FP16_MIN_SCALE).half().float()
        codes = ((values - low) / scale).round().clamp(0, 2**bits - 1)
        decoded = codes * scale + low
    return values + (decoded - values).detach()
