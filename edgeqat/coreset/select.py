"""Selection of a coreset from scores: the top share, balanced over classes if asked, part of it
drawn at random if asked.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgeqat.errors import UsageError


def select(
    scores: Tensor,
    share: float,
    labels: Tensor | None = None,
    random_share: float = 0.0,
    seed: int = 0,
) -> Tensor:
    """Ascending indices of the round(share * N) highest of `scores` (N,).

    labels (N,) balances the classes: each gets its part, the remainder goes to the classes with the
    highest next score. random_share of the coreset is drawn uniformly from what the top leaves.
    Raises UsageError for a share outside (0, 1] and for fewer places than classes.
    """
    count = size(len(scores), share)
    if not torch.isfinite(scores).all():
        raise UsageError("coreset: some scores are not finite; look at the losses of this run")
    high = top(count, random_share)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(len(scores), generator=generator)  # the order of equal scores
    order = drawn[scores.cpu()[drawn].argsort(descending=True, stable=True)]
    chosen = order[:high] if labels is None else _balanced(order, labels, high)
    if high < count:
        left = torch.ones(len(scores), dtype=torch.bool)
        left[chosen] = False
        rest = left.nonzero()[:, 0]
        places = torch.randperm(len(rest), generator=generator)[: count - high]
        chosen = torch.cat([chosen, rest[places]])
    return chosen.sort().values


def size(samples: int, share: float) -> int:
    """How many of `samples` a share is, at least one."""
    if not 0 < share <= 1:
        raise UsageError(
            f"coreset: {share:g} is outside (0, 1]; give the share of the data to keep"
        )
    return max(round(share * samples), 1)


def top(count: int, random_share: float) -> int:
    """How many of `count` places are given by score."""
    return count - round(random_share * count)


def check_balance(labels: Tensor, count: int) -> None:
    """Refuse fewer places given by score than classes; labels (N,)."""
    classes = len(labels.unique())
    if count < classes:
        raise UsageError(
            f"coreset.share: {count} samples chosen by score cannot cover {classes} classes; raise "
            "it, lower coreset.random_share or set coreset.balanced to false"
        )


def overlap(first: Tensor, second: Tensor) -> float:
    """The share of `first` (indices) that `second` holds too."""
    return torch.isin(first, second).float().mean().item() if len(first) else 0.0


def _balanced(order: Tensor, labels: Tensor, count: int) -> Tensor:
    """The first `count` of `order` with as equal a number from each class as there are samples."""
    check_balance(labels, count)
    classes, member = labels[order].unique(return_inverse=True)
    by_class = member.argsort(stable=True)
    sizes = torch.bincount(member, minlength=len(classes))
    first = torch.repeat_interleave(sizes.cumsum(0) - sizes, sizes)
    rank = torch.empty_like(member)
    rank[by_class] = torch.arange(len(member)) - first  # place of a sample within its class
    return order[rank.argsort(stable=True)[:count]]
