"""Models whose parameters are spread over processes by `fully_shard` (FSDP2), made whole again.

Quantizer scales are sharded like weights, which is why none of them has 0 dimensions.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn
from torch.distributed.tensor import DTensor

M = TypeVar("M", bound=nn.Module)


def is_sharded(model: nn.Module) -> bool:
    """Whether a process holds only its part of the parameters."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


@torch.no_grad()
def gathered(sharded: nn.Module, plain: M) -> M:
    """`plain`, an unsharded model of the same kind, with the sharded one's parameters and buffers;
    all processes call it together.
    """
    tensors = plain.state_dict(keep_vars=True)
    for name, tensor in sharded.state_dict().items():
        tensors[name].copy_(tensor.full_tensor() if isinstance(tensor, DTensor) else tensor)
    return plain
