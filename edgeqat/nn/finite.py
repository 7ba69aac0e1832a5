"""Weights that are no numbers, found before anything is computed with them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgeqat.errors import ModelError


@torch.no_grad()
def check_finite(model: nn.Module, name: str) -> None:
    """Refuse a model, called `name`, with a NaN or an infinity in its parameters or buffers: says
    which tensor and how many.
    """
    broken = [(key, tensor) for key, tensor in model.state_dict().items() if not _is_finite(tensor)]
    if not broken:
        return
    key, tensor = broken[0]
    count = int((~tensor.isfinite()).sum())
    more = f", and {len(broken) - 1} more tensors hold some" if len(broken) > 1 else ""
    raise ModelError(
        f"model: {key} of '{name}' holds {count} of {tensor.numel()} values that are NaN or "
        f"infinite{more}; use an intact checkpoint"
    )


def _is_finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point() or tensor.is_meta or not tensor.numel():
        return True
    low, high = tensor.aminmax()  # one walk without a copy; a NaN becomes both
    return bool(low.isfinite() & high.isfinite())
