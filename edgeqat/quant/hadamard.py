"""Hadamard rotation: spreads the few large values of a row, so that one absmax scale fits all.

    x' = x H,  H orthonormal and symmetric (Sylvester), so that rotating twice gives x back

Rows are rotated in blocks of the largest power of two that divides their length, up to a limit: 32
for inputs of linear layers (16 to 256 measured equal, docs/log/quantizers.md), 128 for heads. A
product keeps its value when both sides are rotated: (x H)(w H)^T = x w^T, (q H)(k H)^T = q k^T.
Sources: QuIP# 2402.04396, QuaRot 2404.00456.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from edgeqat.quant.exact import is_exact

INPUT_BLOCK = 32
HEAD_BLOCK = 128


def block_size(length: int, largest: int) -> int:
    """Rotated block of rows of `length`: the largest power of two, up to `largest`, dividing it."""
    return min(length & -length, largest)


def rotate(values: Tensor, block: int) -> Tensor:
    """`values` (..., D) rotated in blocks along the last dimension, in float32; block 1 or 0 does
    nothing.
    """
    if block < 2:
        return values
    kind = torch.float64 if is_exact() else torch.float32
    rotation = _matrix(block, values.device).to(kind)
    with torch.autocast(values.device.type, enabled=False):
        rotated = values.to(kind).reshape(-1, block) @ rotation
    return rotated.view(values.shape).to(values.dtype)


@lru_cache(maxsize=32)
def _matrix(size: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # a cached inference tensor could not enter autograd
        matrix = torch.ones(1, 1)
        while matrix.shape[0] < size:
            matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
        norm: float = size**-0.5
        return (matrix * norm).to(device)
