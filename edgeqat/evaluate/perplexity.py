"""Perplexity over packed blocks: exp of the mean negative log-likelihood per predicted token, in
one pass.

Blocks do not overlap; the first token of a block is context only. What the number depends on
(context, stride, BOS, how many blocks) stands beside it in every result.

Legend: B batch, T tokens of a block, V vocabulary.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from edgeqat.data.text import Blocks
from edgeqat.recipe.data import DataSection

_LOGITS_AT_ONCE = 1 << 25
_MAX_NATS = 700.0  # exp of more overflows a float


@torch.no_grad()
def perplexity(model: Any, blocks: Blocks) -> float:
    """Perplexity of a causal language model on blocks (N, T)."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    total = torch.zeros((), dtype=torch.float64)
    count = 0
    for ids in blocks.ids.split(blocks_at_once(model, blocks.ids.shape[1])):
        ids = ids.to(device)
        logits = model(input_ids=ids, use_cache=False).logits
        total += nats(logits[:, :-1], ids[:, 1:]).cpu()
        count += ids.shape[0] * (ids.shape[1] - 1)
    model.train(was_training)
    return math.exp(min(total.item() / count, _MAX_NATS))


def blocks_at_once(model: Any, context: int, tokens: int = 4096) -> int:
    """How many blocks of `context` tokens one pass takes: at most so many tokens, and logits of at
    most 128 MiB in float32.
    """
    return max(1, min(tokens, _LOGITS_AT_ONCE // model.config.vocab_size) // context)


def perplexity_of(logits: Tensor, ids: Tensor) -> float:
    """Perplexity that logits (B, T, V) give to blocks (B, T)."""
    labels = ids[:, 1:]
    return math.exp(min(nats(logits[:, :-1], labels).item() / labels.numel(), _MAX_NATS))


def nats(logits: Tensor, labels: Tensor) -> Tensor:
    """Negative log-likelihood, in nats, that logits (B, T, V) give to labels (B, T): the sum of all
    tokens, in float64.
    """
    losses = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction="none")
    return losses.double().sum()


def conditions(data: DataSection, blocks: Blocks) -> dict[str, int | bool]:
    """What a perplexity depends on, for `evaluation` in metrics.json."""
    return {
        "context": data.context,
        "stride": data.context,
        "bos": data.bos,
        "blocks": len(blocks),
        "tokens": len(blocks) * (data.context - 1),
    }


def recovered(floating: float, ptq: float, qat: float) -> float | None:
    """(log ppl_ptq - log ppl_qat) / (log ppl_ptq - log ppl_float); None when PTQ loses nothing."""
    gap = math.log(ptq) - math.log(floating)
    return (math.log(ptq) - math.log(qat)) / gap if gap > 0 else None
