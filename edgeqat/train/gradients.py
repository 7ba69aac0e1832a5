"""Gradients that stay where they are from step to step. Taken anew between the activations of
micro-batches, they leave gaps in the heap: a fifth of the memory of a step
(docs/log/training-speed.md).
"""

from __future__ import annotations

from functools import partial

import torch
from torch import nn


def keep_gradients(model: nn.Module) -> None:
    """Give every trained parameter a gradient of zeros, which zero_grad() brings back to that."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    vars(model)["zero_grad"] = partial(nn.Module.zero_grad, model, set_to_none=False)


def free_gradients(model: nn.Module) -> None:
    """Undo keep_gradients()."""
    vars(model).pop("zero_grad", None)
    model.zero_grad()
