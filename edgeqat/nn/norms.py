"""Batch norms estimated anew: what training on a few, one-sidedly chosen images left in their
running means and variances is not what other images bring (Wu & Johnson, 2105.07576: precise batch
norm).

Legend: B batch, S side.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel


def has_norms(model: nn.Module) -> bool:
    """Whether a model has batch norms with running estimates."""
    return bool(_norms(model))


@torch.no_grad()
def estimate(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set the running means and variances of all batch norms to the means over batches
    (B, 3, S, S); nothing else of the model changes. Batches of one image, which have no variance,
    are left out; without others nothing changes.
    """
    usable = (batch for batch in batches if len(batch) > 1)
    first = next(usable, None)
    if first is None:
        return
    if isinstance(model, DistributedDataParallel):
        model = model.module
    norms, was_training = _norms(model), model.training
    before = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.train()
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean
    try:
        for batch in chain([first], usable):
            model(batch)
    finally:
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum
        model.train(was_training)


def _norms(model: nn.Module) -> list[_BatchNorm]:
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
