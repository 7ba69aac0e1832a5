"""Hadamard rotation: orthonormal, its own inverse, in blocks that divide the row."""

import pytest
import torch

from edgeqat.quant.hadamard import block_size, rotate


@pytest.mark.parametrize(
    ("length", "block"), [(1, 1), (8, 8), (64, 64), (80, 16), (96, 32), (688, 16), (4096, 128)]
)
def test_block_is_the_largest_power_of_two(length, block):
    assert block_size(length, 128) == block
    assert block_size(length, 32) == min(block, 32)


@pytest.mark.parametrize("length", [2, 8, 24, 64, 256])
def test_rotating_twice_gives_the_row_back_and_keeps_products(length):
    left, right = torch.randn(3, length), torch.randn(5, length)
    block = block_size(length, 64)
    turned = rotate(left, block)
    assert not torch.allclose(turned, left, atol=1e-2)
    assert torch.allclose(rotate(turned, block), left, atol=1e-5)
    assert torch.allclose(turned @ rotate(right, block).T, left @ right.T, atol=1e-4)


def test_one_large_value_is_spread():
    row = torch.zeros(1, 64)
    row[0, 5] = 8.0
    assert torch.allclose(rotate(row, 64).abs(), torch.ones(1, 64))


def test_dtype_stays_and_no_block_does_nothing():
    row = torch.randn(2, 16)
    assert rotate(row, 0) is row
    assert rotate(row, 1) is row
    assert rotate(row.bfloat16(), 16).dtype == torch.bfloat16


def test_gradients_flow_after_use_in_inference_mode():
    with torch.inference_mode():
        rotate(torch.randn(1, 32), 32)
    row = torch.randn(1, 32, requires_grad=True)
    rotate(row, 32).square().sum().backward()
    assert torch.allclose(row.grad, 2 * row, atol=1e-5)


def test_products_stay_float32_under_autocast():
    values = torch.randn(8, 64)
    with torch.autocast("cpu", torch.bfloat16):
        inside = rotate(values, 32)
    assert torch.equal(inside, rotate(values, 32))
