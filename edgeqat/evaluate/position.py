"""A model beside its float model on long blocks, by the position of a token: what a cache of few
bits loses grows with what stands in it.

Legend: N blocks, T tokens of a block, V vocabulary.
"""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
from torch import Tensor

from edgeqat.evaluate.reader import Reader

logger = logging.getLogger(__name__)

_ROWS = 256  # positions whose probabilities are held at a time


@torch.no_grad()
def by_position(model: Reader, floating: Reader, blocks: Tensor, parts: int = 4) -> dict[str, Any]:
    """Perplexity of both models on blocks (N, T), KL(float || model) in nats a token and the share
    of equal most likely tokens: of all tokens, and of `parts` equal ranges of positions.
    """
    sums = torch.zeros(4, blocks.shape[1] - 1, dtype=torch.float64)
    for number, ids in enumerate(blocks, 1):
        both = [one.rows(ids.tolist(), len(ids)) for one in (floating, model)]
        rows = min(one.shape[1] for one in both)
        for start in range(0, len(ids) - 1, _ROWS):
            part = slice(start, min(start + _ROWS, len(ids) - 1))
            labels = ids[part.start + 1 : part.stop + 1]
            floats, own = (one[part, :rows] for one in both)
            sums[:, part] += _compared(floats, own, labels)
        logger.info("positions: %d of %d blocks", number, len(blocks))
    sums /= len(blocks)
    places = torch.arange(sums.shape[1]).tensor_split(parts)
    return {
        "blocks": len(blocks),
        "context": blocks.shape[1],
        **_told(sums),
        "positions": [
            {"first": int(at[0]) + 1, "last": int(at[-1]) + 1, **_told(sums[:, at])}
            for at in places
            if len(at)
        ],
    }


def _compared(floating: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """Nats of both models, KL and equal top tokens (4, n) of n positions."""
    log_p, log_q = (one.float().log_softmax(-1) for one in (floating, logits))
    nats = [-one.gather(1, labels[:, None])[:, 0] for one in (log_p, log_q)]
    divergence = (log_p.exp() * (log_p - log_q)).sum(-1)
    same = floating.argmax(-1) == logits.argmax(-1)
    return torch.stack([*nats, divergence, same.float()]).double().cpu()


def _told(sums: Tensor) -> dict[str, float]:
    floating, model, divergence, same = sums.mean(1).tolist()
    return {
        "float": math.exp(floating), "model": math.exp(model), "kl": divergence, "same_top": same
    }  # fmt: skip
