"""Tiles: how codes of 1, 2, 3, 4, 6 and 8 bits lie in the packed folder (docs/format.md).

A tile is 16 output rows by some inputs in 64 bytes, 4 bytes a row, so that one AVX-512 register,
two AVX2 registers or four NEON registers hold it. A byte of a b-bit plane holds 8/b codes whose
inputs are 4 apart: bits [b*k, b*(k+1)) of byte j are input 4*k + j. At 4 bit: low nibbles inputs
0-3, high nibbles inputs 4-7.

    8 bit: 16 x 4    4 bit: 16 x 8    2 bit: 16 x 16    1 bit: 16 x 32
    6 bit: 16 x 16 = two 4-bit planes, then one 2-bit plane (the upper bits)           192 bytes
    3 bit: 16 x 32 = two 2-bit planes, then one 1-bit plane (the upper bit)            192 bytes

Codes are stored unsigned (code - qmin). Rows and inputs are padded with code 0; activations that
meet padding must be 0, because the half-step grid has no zero level. Scales lie as [O/16][G][16]
fp16.

Legend: O rows, I inputs, G groups, R = ceil(O/16), N = tiles of a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROWS = 16
PLANES = {8: (8,), 4: (4,), 2: (2,), 1: (1,), 6: (4, 2), 3: (2, 1)}
TILE_INPUTS = {8: 4, 4: 8, 2: 16, 1: 32, 6: 16, 3: 32}
TILE_BYTES = {bits: sum(ROWS * TILE_INPUTS[bits] * p // 8 for p in PLANES[bits]) for bits in PLANES}


def packed_shape(shape: tuple[int, int], bits: int) -> tuple[int, int, int]:
    """Shape (R, N, bytes of a tile) of the packed codes of a weight (O, I)."""
    rows, columns = shape
    return (-(-rows // ROWS), -(-columns // TILE_INPUTS[bits]), TILE_BYTES[bits])


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes (O, I) int8 in [-2^(b-1), 2^(b-1) - 1] -> tiles uint8 of packed_shape."""
    rows, columns = codes.shape
    tile_rows, tiles, _ = packed_shape((rows, columns), bits)
    size = tile_rows * ROWS, tiles * TILE_INPUTS[bits]
    padded = torch.zeros(size, dtype=torch.int16, device=codes.device)
    padded[:rows, :columns] = codes
    unsigned = padded + (1 << (bits - 1))
    blocks = unsigned.reshape(tile_rows, ROWS, tiles, TILE_INPUTS[bits]).transpose(1, 2)
    parts, shift = [], 0
    for width in PLANES[bits]:
        parts.append(_pack_plane((blocks >> shift) & ((1 << width) - 1), width))
        shift += width
    return torch.cat(parts, dim=-1).contiguous()


def unpack(tiles: Tensor, bits: int, shape: tuple[int, int]) -> Tensor:
    """Tiles uint8 of packed_shape -> codes (O, I) int8: the inverse of pack."""
    tile_rows, count, _ = tiles.shape
    inputs = TILE_INPUTS[bits]
    unsigned = torch.zeros(tile_rows, count, ROWS, inputs, dtype=torch.int16, device=tiles.device)
    start, shift = 0, 0
    for width in PLANES[bits]:
        size = ROWS * inputs * width // 8
        unsigned |= _unpack_plane(tiles[..., start : start + size], width, inputs) << shift
        start, shift = start + size, shift + width
    codes = (unsigned - (1 << (bits - 1))).transpose(1, 2)
    codes = codes.reshape(tile_rows * ROWS, count * inputs)
    return codes[: shape[0], : shape[1]].to(torch.int8).contiguous()


def pack_scale(scale: Tensor) -> Tensor:
    """Scale (O, G) fp16 -> (R, G, 16) fp16; padded rows get scale 0."""
    rows, groups = scale.shape
    size = -(-rows // ROWS) * ROWS, groups
    padded = torch.zeros(size, dtype=torch.float16, device=scale.device)
    padded[:rows] = scale
    return padded.reshape(-1, ROWS, groups).transpose(1, 2).contiguous()


def unpack_scale(packed: Tensor, rows: int) -> Tensor:
    """(R, G, 16) fp16 -> scale (O, G) fp16: the inverse of pack_scale."""
    return packed.transpose(1, 2).reshape(-1, packed.shape[1])[:rows].contiguous()


def _pack_plane(blocks: Tensor, width: int) -> Tensor:
    """(..., 16, inputs) values of `width` bits -> (..., bytes), 64 bytes after 64 bytes."""
    per_tile = 32 // width  # inputs of one 64-byte plane tile: 4 bytes a row
    shape = blocks.shape[:-1]
    parts = blocks.reshape(
        *shape, -1, 8 // width, 4
    )  # (..., 16, plane tiles, codes of a byte, byte)
    assert blocks.shape[-1] % per_tile == 0
    shifts = torch.arange(0, 8, width, dtype=torch.int16, device=blocks.device)[:, None]
    packed = (parts << shifts).sum(dim=-2).to(torch.uint8)  # (..., 16, plane tiles, 4)
    return packed.transpose(-3, -2).flatten(-3)


def _unpack_plane(packed: Tensor, width: int, inputs: int) -> Tensor:
    """The inverse of _pack_plane: (..., bytes) -> (..., 16, inputs) int16."""
    parts = packed.unflatten(-1, (-1, ROWS, 4)).transpose(-3, -2).to(torch.int16)
    shifts = torch.arange(0, 8, width, dtype=torch.int16, device=packed.device)[:, None]
    values: Tensor = (parts.unsqueeze(-2) >> shifts) & ((1 << width) - 1)
    return values.flatten(-3).reshape(*packed.shape[:-1], ROWS, inputs)
