"""Rows: how the KV cache holds the codes of one token and head, as bytes.

A row of D codes of b bits (unsigned: code - qmin) is one plane after the other, low bits first, as
in the tiles of weights (quant/packing): 8, 4, 2 and 1 bit are one plane, 6 bit is 4 + 2 and 3 bit 2
+ 1. A byte of a p-bit plane holds 8/p neighbouring codes, the first one in its lowest bits. D is
padded to a multiple of 8 with code qmin.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from edgeqat.quant.packing import PLANES

_STEP = 8


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes (..., D) in [-2^(b-1), 2^(b-1) - 1], any dtype -> bytes (..., ceil(D/8) * b) uint8."""
    unsigned = codes.to(torch.int16) + (1 << (bits - 1))
    missing = -unsigned.shape[-1] % _STEP
    unsigned = F.pad(unsigned, (0, missing)) if missing else unsigned
    parts, shift = [], 0
    for width in PLANES[bits]:
        plane = ((unsigned >> shift) & ((1 << width) - 1)).unflatten(-1, (-1, 8 // width))
        parts.append((plane << _shifts(width, codes.device)).sum(-1, dtype=torch.int16))
        shift += width
    return torch.cat(parts, dim=-1).to(torch.uint8)


def unpack(packed: Tensor, bits: int, length: int) -> Tensor:
    """Bytes of pack() -> codes (..., length) int16."""
    steps = -(-length // _STEP)
    unsigned = torch.zeros((), dtype=torch.int16, device=packed.device)
    start, shift = 0, 0
    for width in PLANES[bits]:
        plane = packed[..., start : start + steps * width].to(torch.int16)
        values = (plane.unsqueeze(-1) >> _shifts(width, packed.device)) & ((1 << width) - 1)
        unsigned = (values.flatten(-2) << shift) | unsigned
        start, shift = start + steps * width, shift + width
    return (unsigned - (1 << (bits - 1)))[..., :length]


def _shifts(width: int, device: torch.device) -> Tensor:
    return torch.arange(0, 8, width, dtype=torch.int16, device=device)
