"""Float models whose linear weights are kept in 16 bits and computed in float32.

A checkpoint in bf16 or fp16 read as float32 holds nothing but zeros in its other 16 bits; a teacher
needs half the memory without them, and computes the same numbers. Not for training: `float_copy`
gives a model to train.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

M = TypeVar("M", bound=nn.Module)
_DTYPES = (torch.bfloat16, torch.float16)


class HalfLinear(nn.Linear):
    """nn.Linear with a 16-bit weight (O, I) and float32 arithmetic, or autocast's."""

    def forward(self, input: Tensor) -> Tensor:
        if torch.is_autocast_enabled(input.device.type):
            return F.linear(input, self.weight, self.bias)
        return F.linear(input, self.weight.to(input.dtype), self.bias)


@torch.no_grad()
def keep_half(model: M) -> M:
    """Keep in 16 bits, in place, every linear weight that loses nothing by it; tied ones stay."""
    tied = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for layer in model.modules():
        if type(layer) is nn.Linear and id(layer.weight) not in tied:
            for dtype in _DTYPES:
                short = layer.weight.to(dtype)
                if torch.equal(short.to(layer.weight.dtype), layer.weight):
                    layer.weight = nn.Parameter(short, requires_grad=False)
                    layer.__class__ = HalfLinear
                    break
    return model


@torch.no_grad()
def narrow(model: M) -> M:
    """Keep linear weights in bf16, in place, of a model that will only multiply in it; tied ones
    stay.
    """
    tied = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for layer in model.modules():
        if type(layer) is nn.Linear and id(layer.weight) not in tied:
            layer.weight = nn.Parameter(layer.weight.bfloat16(), requires_grad=False)
            layer.__class__ = HalfLinear
    return model


@torch.no_grad()
def float_copy(model: M) -> M:
    """A trainable copy with plain float32 linear layers."""
    copied = copy.deepcopy(model).requires_grad_(True)  # a teacher's parameters are frozen
    for layer in copied.modules():
        if isinstance(layer, HalfLinear):
            layer.weight = nn.Parameter(layer.weight.float())
            layer.__class__ = nn.Linear  # type: ignore[assignment]
    return copied
