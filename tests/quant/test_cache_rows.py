"""Rows of codes as bytes: every width, every length, by hand and back."""

from __future__ import annotations

import pytest
import torch

from edgeqat.quant import cache_rows


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
@pytest.mark.parametrize("length", [8, 16, 22, 64, 128])
def test_codes_come_back(bits, length):
    codes = torch.randint(-(1 << (bits - 1)), 1 << (bits - 1), (2, 3, 5, length))
    packed = cache_rows.pack(codes.float(), bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (2, 3, 5, -(-length // 8) * bits)
    assert torch.equal(cache_rows.unpack(packed, bits, length).long(), codes)


def test_four_bits_by_hand():
    packed = cache_rows.pack(torch.tensor([-8, 7, 0, 1, -1, -2, 3, 4]), 4)
    assert packed.tolist() == [0xF0, 0x98, 0x67, 0xCB]


def test_three_bits_are_a_plane_of_two_and_one_of_one():
    packed = cache_rows.pack(torch.tensor([-4, -3, -2, -1, 0, 1, 2, 3]), 3)
    assert packed.tolist() == [0b11100100, 0b11100100, 0b11110000]
