"""Numbers as llama.cpp rounds them, so that training sees what its kernels do: keys and values in a
q4_0 or q8_0 cache, the inputs of matrices of Q4_0 or Q8_0 blocks, and the queries of such a cache.

Blocks of 32 along the last dimension, an fp16 scale d each:
    q4_0   d = m / -8 with m the value of largest magnitude, sign kept;
           code = trunc(x/d + 8.5) - 8, at most 7
    q8_0   d = max|x| / 127;  code = round half away from zero (x/d)
No token is kept at more bits. Where head_dim is a multiple of 64 the runtime rotates queries and
keys in blocks of the largest power of two that divides head_dim, and values in blocks of 64; rows
of q and k are interleaved in its Llama architecture, so rotation and blocks meet them in that
order.

Inputs and queries are q8_0 whatever the width of the weights.

Legend: B batch, K key/value heads, T tokens, D head_dim, G blocks of a row.
Source: ggml's block formats; llama.cpp pull request 21038 (rotation).
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgeqat.quant import cache_rows
from edgeqat.quant.dynamic import CacheQuantizer, in_groups
from edgeqat.quant.quantizer import Quantizer
from edgeqat.scheme import HIGH_BITS, grid_of

BLOCK = 32
BITS = (4, 8)
_ROTATED = 64  # heads of a multiple of this are rotated


class BlockQuantizer(Quantizer):
    """Activations (..., I) in blocks of q8_0, the last one padded with zeros."""

    def __init__(self, bits: int = 8) -> None:
        super().__init__()
        assert bits == HIGH_BITS
        self.grid = grid_of(bits)

    def forward(self, values: Tensor) -> Tensor:
        """Fake-quantized values, straight-through."""
        if not self.enabled:
            return values
        return _rounded(in_groups(values, BLOCK), values, self.grid.bits)

    def extra_repr(self) -> str:
        return f"bits={self.grid.bits}, dynamic per block of {BLOCK}"


class BlockCacheQuantizer(CacheQuantizer):
    """Keys or values (B, K, T, D) in a q4_0 or q8_0 cache."""

    def __init__(self, bits: int, head_dim: int) -> None:
        super().__init__(bits, head_dim, minmax=True)
        assert bits in BITS
        self.group_size = BLOCK

    def forward(self, values: Tensor, high: Tensor) -> Tensor:
        """Fake-quantized values, straight-through; `high` is not used."""
        return _rounded(self._grouped(values), values, self.low.bits) if self.enabled else values

    @torch.no_grad()
    def encode(self, values: Tensor, high: bool) -> tuple[Tensor, Tensor]:
        """Packed rows (B, K, T, bytes) uint8 and scales (B, K, T, G) fp16."""
        codes, scale = quantize_blocks(self._grouped(values).float(), self.low.bits)
        return cache_rows.pack(codes.flatten(-2), self.low.bits), scale.squeeze(-1).half()


def _rounded(grouped: Tensor, values: Tensor, bits: int) -> Tensor:
    """Blocks (..., G, 32) of values (..., I) rounded, straight-through, in the shape of values."""
    codes, scale = quantize_blocks(grouped.detach().float(), bits)
    rounded = (codes * scale.half().float()).to(values.dtype)
    rounded = (grouped + (rounded - grouped).detach()).flatten(-2)
    return rounded[..., : values.shape[-1]]


def quantize_blocks(blocks: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Codes and scale (..., 1), not yet rounded to fp16, of blocks (..., 32) float32."""
    if bits == 8:
        scale = blocks.abs().amax(-1, keepdim=True) / 127
        ratio = blocks * _inverse(scale)
        return (ratio.abs() + 0.5).floor().copysign(ratio), scale
    largest = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
    scale = largest / -8
    codes = (blocks * _inverse(scale) + 8.5).trunc().clamp(max=15) - 8
    return codes, scale


def rotations(head_dim: int) -> tuple[int, int]:
    """Blocks of the rotation of queries and keys, and of values; 0: none."""
    if head_dim % _ROTATED:
        return 0, 0
    return head_dim & -head_dim, _ROTATED


def interleaved(values: Tensor) -> Tensor:
    """(..., D) from halves (transformers: x0 x1 ... | y0 y1 ...) to pairs (x0 y0 x1 y1 ...)."""
    pairs: Tensor = values.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)
    return pairs


def in_halves(values: Tensor) -> Tensor:
    """The inverse of interleaved()."""
    halves: Tensor = values.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)
    return halves


def _inverse(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, 0.0, 1 / scale)
