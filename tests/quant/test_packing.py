"""Tiles: round trips over odd shapes and the exact bytes, against a plain reading of the layout."""

from __future__ import annotations

import pytest
import torch

from edgeqat.quant import packing
from edgeqat.scheme import GROUP_MULTIPLE, grid_of

WIDTHS = [1, 2, 3, 4, 6, 8]
SHAPES = [(1, 1), (15, 17), (17, 33), (40, 172), (16, 32)]


def random_codes(shape, bits):
    grid = grid_of(bits)
    generator = torch.Generator().manual_seed(bits)
    return torch.randint(grid.qmin, grid.qmax + 1, shape, generator=generator, dtype=torch.int8)


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_codes_survive_a_round_trip(bits, shape):
    codes = random_codes(shape, bits)
    tiles = packing.pack(codes, bits)
    assert tiles.dtype == torch.uint8
    assert tuple(tiles.shape) == packing.packed_shape(shape, bits)
    assert torch.equal(packing.unpack(tiles, bits, shape), codes)


@pytest.mark.parametrize("bits", WIDTHS)
def test_tiles_have_64_bytes_or_192(bits):
    inputs = {8: 4, 4: 8, 2: 16, 1: 32, 6: 16, 3: 32}[bits]
    size = 192 if bits in (3, 6) else 64
    assert packing.packed_shape((33, inputs * 2 + 1), bits) == (3, 3, size)
    assert size * 8 == 16 * inputs * bits


@pytest.mark.parametrize("bits", WIDTHS)
def test_a_group_boundary_is_a_tile_boundary(bits):
    assert GROUP_MULTIPLE % packing.TILE_INPUTS[bits] == 0


def test_four_bit_tile_byte_by_byte():
    codes = random_codes((40, 172), 4)
    tiles = packing.pack(codes, 4)
    for tile_row, tile, row, byte in [(0, 0, 0, 0), (1, 5, 7, 2), (2, 20, 7, 3), (0, 21, 15, 1)]:
        found = tiles[tile_row, tile, 4 * row + byte].item()
        low = codes[16 * tile_row + row, 8 * tile + byte].item() + 8
        column = 8 * tile + 4 + byte
        high = codes[16 * tile_row + row, column].item() + 8 if column < 172 else 8
        assert (found & 15, found >> 4) == (low, high)


def test_a_four_bit_row_by_hand():
    codes = torch.tensor([[-8, -7, -6, -5, 7, 6, 5, 4]], dtype=torch.int8)
    tile = packing.pack(codes, 4)[0, 0]
    assert tile[:4].tolist() == [0xF0, 0xE1, 0xD2, 0xC3]
    assert (tile[4:] == 0x88).all()  # padding rows hold code 0


def read_plane(tiles, width, start):
    """(tile rows, tiles, 16, 32 / width) unsigned values of the 64-byte plane at byte `start`."""
    found = torch.zeros(*tiles.shape[:2], 16, 32 // width, dtype=torch.int64)
    for row in range(16):
        for column in range(32 // width):
            k, j = divmod(column, 4)
            byte = tiles[:, :, start + 4 * row + j].long()
            found[:, :, row, column] = (byte >> (width * k)) & ((1 << width) - 1)
    return found


@pytest.mark.parametrize("bits", WIDTHS)
def test_every_width_is_read_back_by_the_plain_rule(bits):
    codes = random_codes((17, 70), bits)
    tiles = packing.pack(codes, bits)
    if bits == 6:  # two 4-bit planes, then a 2-bit plane with the upper bits
        low = torch.cat([read_plane(tiles, 4, 0), read_plane(tiles, 4, 64)], -1)
        unsigned = low | read_plane(tiles, 2, 128) << 4
    elif bits == 3:  # two 2-bit planes, then a 1-bit plane with the upper bit
        low = torch.cat([read_plane(tiles, 2, 0), read_plane(tiles, 2, 64)], -1)
        unsigned = low | read_plane(tiles, 1, 128) << 2
    else:
        unsigned = read_plane(tiles, bits, 0)
    rows, count, _, inputs = unsigned.shape
    plain = unsigned.transpose(1, 2).reshape(rows * 16, count * inputs) - (1 << (bits - 1))
    assert torch.equal(plain[:17, :70].to(torch.int8), codes)
    assert (plain[17:] == 0).all()
    assert (plain[:, 70:] == 0).all()


@pytest.mark.parametrize("bits", WIDTHS)
def test_extreme_codes_survive(bits):
    grid = grid_of(bits)
    for code in (grid.qmin, grid.qmax):
        codes = torch.full((17, 33), code, dtype=torch.int8)
        assert torch.equal(packing.unpack(packing.pack(codes, bits), bits, (17, 33)), codes)


@pytest.mark.parametrize("shape", [(1, 1), (15, 3), (16, 1), (17, 5), (40, 2)], ids=str)
def test_scales_lie_as_rows_groups_16(shape):
    rows, groups = shape
    scale = torch.rand(shape).half()
    packed = packing.pack_scale(scale)
    assert packed.dtype == torch.float16
    assert packed.shape == (-(-rows // 16), groups, 16)
    assert packed.is_contiguous()
    for row in (0, rows // 2, rows - 1):
        for group in (0, groups - 1):
            assert packed[row // 16, group, row % 16] == scale[row, group]
    assert packed.transpose(1, 2).reshape(-1, groups)[rows:].abs().sum() == 0
    assert torch.equal(packing.unpack_scale(packed, rows), scale)
