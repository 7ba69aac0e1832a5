"""Dynamic quantizers of activations and of the KV cache."""

from __future__ import annotations

import pytest
import torch

from edgeqat.quant import functional
from edgeqat.quant.dynamic import CacheQuantizer, DynamicQuantizer

ACTIVATIONS = [2, 3, 4, 6, 8]
CACHE = [2, 3, 4, 6, 8]


@pytest.mark.parametrize("bits", ACTIVATIONS)
def test_zero_row_stays_zero(bits):
    values = torch.randn(2, 5, 32)
    values[0, 3] = 0
    found = DynamicQuantizer(bits)(values)
    assert found.isfinite().all()
    assert (found[0, 3] == 0).all()


@pytest.mark.parametrize("bits", ACTIVATIONS)
def test_a_token_does_not_see_the_others(bits):
    made, values = DynamicQuantizer(bits), torch.randn(2, 5, 32)
    found = made(values)
    for batch in range(2):
        for token in range(5):
            assert torch.equal(made(values[batch, token]), found[batch, token])


@pytest.mark.parametrize("bits", ACTIVATIONS)
def test_values_lie_on_as_many_levels_as_there_are_codes(bits):
    row = DynamicQuantizer(bits)(torch.randn(1, 4096))
    assert len(row.unique()) <= 2**bits


@pytest.mark.parametrize("bits", ACTIVATIONS)
def test_clipping_is_no_worse_than_none_on_normal_rows(bits):
    made, values = DynamicQuantizer(bits), torch.randn(64, 512)
    codes, scale = functional.quantize_dynamic(values, made.grid)
    unclipped = functional.dequantize(codes, scale, made.grid)
    error, reference = ((x - values).square().mean().item() for x in (made(values), unclipped))
    assert error <= reference


def test_switched_off_it_passes_values_through():
    values = torch.randn(3, 8)
    made = DynamicQuantizer(8)
    made.enabled = False
    assert made(values) is values
    assert repr(made) == "DynamicQuantizer(bits=8, dynamic per_token, disabled)"


def test_bf16_is_computed_in_float32_also_under_autocast():
    made, values = DynamicQuantizer(8), torch.randn(4, 64).bfloat16()
    expected = made(values.float()).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = made(values)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected)


def sinks(tokens, count=0):
    return (torch.arange(tokens) < count)[None]


@pytest.mark.parametrize("bits", CACHE)
def test_cache_rows_are_per_token_and_head(bits):
    made, values = CacheQuantizer(bits, 16), torch.randn(2, 3, 5, 16)
    found = made(values, sinks(5))
    assert found.shape == values.shape
    one = made(values[1:, 2:, 4:], sinks(1))
    assert torch.equal(one, found[1:, 2:, 4:])


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
def test_sinks_are_kept_at_8_bit(bits):
    made, high = CacheQuantizer(bits, 16), CacheQuantizer(8, 16)
    values = torch.randn(2, 3, 7, 16)
    found = made(values, sinks(7, 4))
    assert torch.equal(found[:, :, :4], high(values, sinks(7))[:, :, :4])
    assert torch.equal(found[:, :, 4:], made(values, sinks(7))[:, :, 4:])
    assert (found[:, :, :4] - values[:, :, :4]).abs().mean() < (
        found[:, :, 4:] - values[:, :, 4:]
    ).abs().mean()


def test_sinks_are_per_sequence():
    made, values = CacheQuantizer(2, 16), torch.randn(2, 1, 4, 16)
    marks = torch.tensor([[True, False, False, False], [False, False, True, True]])
    found = made(values, marks)
    for row in range(2):
        assert torch.equal(found[row : row + 1], made(values[row : row + 1], marks[row : row + 1]))


@pytest.mark.parametrize(("head_dim", "group"), [(8, 8), (64, 64), (96, 96), (128, 128), (256, 32)])
def test_wide_heads_use_groups_of_32(head_dim, group):
    made, values = CacheQuantizer(4, head_dim), torch.randn(1, 2, 3, head_dim)
    assert made.group_size == group
    found = made(values, sinks(3))
    for start in range(0, head_dim, group):
        part = values[..., start : start + group].contiguous()
        codes, scale = functional.quantize_searched(part, made.low, made.clips)
        expected = functional.dequantize(codes, scale, made.low)
        assert torch.equal(found[..., start : start + group], expected)


@pytest.mark.parametrize("bits", CACHE)
def test_a_head_that_is_no_multiple_of_32_is_padded(bits):
    made, values = CacheQuantizer(bits, 144), torch.randn(1, 1, 32, 144)
    found = made(values, sinks(32))
    assert found.shape == values.shape
    last = CacheQuantizer(bits, 16)(values[..., 128:].contiguous(), sinks(32))
    assert torch.equal(found[..., 128:], last)


@pytest.mark.parametrize("bits", CACHE)
def test_cache_scales_are_fp16(bits):
    made, row = CacheQuantizer(bits, 64), torch.randn(1, 1, 1, 64)
    packed, scale = made.encode(row, high=False)
    assert scale.dtype == torch.float16
    assert torch.equal(made.decode(packed, scale, False, 64), made(row, sinks(1)))


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_searched_scales_beat_each_single_clip(bits):
    made, values = CacheQuantizer(bits, 64), torch.randn(1, 2, 128, 64)
    best = (made(values, sinks(128)) - values).square().sum(-1)
    for clip in made.clips:
        codes, scale = functional.quantize_searched(values, made.low, (clip,))
        one = (functional.dequantize(codes, scale, made.low) - values).square().sum(-1)
        assert (best <= one).all()
        assert (best < one).any()


def test_without_clipping_llm_qat_keeps_the_largest_key():
    values = torch.randn(1, 1, 5, 64)
    found = CacheQuantizer(4, 64, minmax=True)(values, sinks(5))
    top = values.abs().amax(-1)
    assert torch.allclose(found.abs().amax(-1), top, rtol=1e-3)


@pytest.mark.parametrize("bits", CACHE)
def test_zero_keys_stay_zero(bits):
    values = torch.randn(1, 2, 3, 16)
    values[0, 1, 2] = 0
    found = CacheQuantizer(bits, 16)(values, sinks(3, 1))
    assert found.isfinite().all()
    assert (found[0, 1, 2] == 0).all()


def test_cache_switched_off_passes_values_through():
    made, values = CacheQuantizer(4, 16), torch.randn(1, 1, 2, 16)
    made.enabled = False
    assert made(values, sinks(2)) is values
    assert "group_size=16, disabled" in repr(made)


@pytest.mark.parametrize("bits", CACHE)
def test_cache_passes_gradients(bits):
    values = torch.randn(1, 2, 6, 16, requires_grad=True)
    CacheQuantizer(bits, 16)(values, sinks(6, 2)).sum().backward()
    assert (values.grad[:, :, :2] == 1).all()
    assert ((values.grad == 0) | (values.grad == 1)).all()
    assert values.grad[:, :, 2:].mean() > 0.5


def test_the_offset_is_the_mean_of_all_batches():
    made, none = CacheQuantizer(4, 8, 2), torch.zeros(1, 5, dtype=torch.bool)
    made.observe()
    for value in (1.0, 3.0):
        made(torch.full((1, 2, 5, 8), value), none)
    made.finish()
    assert torch.equal(made.offset, torch.full((2, 8), 2.0))
