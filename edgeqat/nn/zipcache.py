"""ZipCache's choice of tokens (2405.14256) as a baseline, in torch only: the attention that a key
receives.

    saliency_j = sum_i a_ij / (number of queries i that could see j)          mean over heads

The most salient share of a sequence is kept at 8 bit. The score of a token comes from the queries
after it, so that it sees the future in one pass and a cache would have to revise its widths: unlike
token importance (nn/token_importance), which is the attention a token pays.

Legend: B batch, N query heads, K key heads, T tokens, D head_dim.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def salient(query: Tensor, key: Tensor, position: Tensor, share: float, scale: float) -> Tensor:
    """The `share` of tokens (B, T) bool of each sequence that receive most attention, from q (B, N,
    T, D) and k (B, K, T, D); `position` (B or 1, T) counts real tokens, -1 is padding.
    """
    received = saliency(query, key, position, scale)
    real = (position >= 0).expand_as(received)
    count = (real.sum(1, keepdim=True) * share).round()
    received = received.masked_fill(~real, -1.0)
    rank = received.argsort(dim=1, descending=True).argsort(dim=1)
    return rank < count


@torch.no_grad()
def saliency(query: Tensor, key: Tensor, position: Tensor, scale: float) -> Tensor:
    """What each key (B, T) receives, per query that could see it."""
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1).float()
    seen = (position[:, None, :] <= position[:, :, None]) & (position >= 0)[:, None, :]
    logits = (query.float() @ key.mT * scale).masked_fill(~seen[:, None], float("-inf"))
    weights = logits.softmax(-1).nan_to_num(0.0)  # a row of padding sees nothing
    real = (position >= 0).to(weights.dtype)
    received = (weights.mean(dim=1) * real[:, :, None]).sum(dim=1)
    return received / (seen * real[:, :, None]).sum(dim=1).clamp(min=1)
