"""Every instruction set equals the scalar one bit for bit, and both equal the torch reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from marks import needs_kernels

from edgeqat import native
from edgeqat.errors import FormatError
from edgeqat.quant import functional, packing
from edgeqat.quant.dynamic import ACTIVATION_CLIP, CACHE_CLIPS
from edgeqat.scheme import grid_of

pytestmark = needs_kernels

WIDTHS = (1, 2, 3, 4, 6, 8)
COLUMNS = (1, 15, 17, 172, 688)
TOKENS = (1, 2, 4, 5, 12, 13, 31, 33)


def usable():
    """Available instruction sets of the build; without one, the module is skipped anyway."""
    if native.library() is None:
        return []
    return [name for name, available in native.isas().items() if available]


def weights(rows, columns, bits, seed=0):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(
        -(1 << (bits - 1)), 1 << (bits - 1), (rows, columns), generator=generator
    ).to(torch.int8)
    codes[0] = -(1 << (bits - 1))
    codes[-1] = (1 << (bits - 1)) - 1
    return codes


def activations(tokens, columns, seed=1):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-128, 128, (tokens, columns), generator=generator).to(torch.int8)
    codes[0] = -128
    codes[-1, columns // 2 :] = 127
    return codes


def levels(codes, bits):
    """What codes stand for in the integer path (doubled half-step levels, or themselves), and in
    units of which fraction of the scale."""
    return (2 * codes + 1, 0.5) if bits <= 2 else (codes, 1.0)


def product(isa, codes, bits, x, group=None, scale=None, x_scale=None):
    packed = None if scale is None else packing.pack_scale(scale).view(torch.int16).numpy()
    ones = torch.ones(len(x)) if x_scale is None else x_scale
    tiles = packing.pack(codes, bits).numpy()
    return native.product(
        isa, tiles, packed, bits, tuple(codes.shape), group, x.numpy(), ones.numpy()
    )


def test_this_machine_runs_at_least_the_scalar_row():
    assert "scalar" in usable()
    assert native.active_isa() in usable()


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("shape", [(1, 1), (3, 17), (16, 32), (33, 172)])
def test_codes_unpacked_in_cpp_are_the_packed_ones(bits, shape):
    codes = weights(*shape, bits)
    assert np.array_equal(native.unpack(packing.pack(codes, bits).numpy(), bits, shape), codes)


@pytest.mark.parametrize("isa", usable())
@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("columns", COLUMNS)
def test_accumulators_equal_torch_exactly(isa, bits, columns):
    for rows in (1, 17, 50):
        codes = weights(rows, columns, bits)
        for tokens in TOKENS:
            x = activations(tokens, columns)
            level, unit = levels(codes, bits)
            ones = torch.ones(tokens, 1), torch.full((rows, 1), unit)
            expected = functional.integer_linear(x, ones[0], level, ones[1], None)
            assert expected.abs().max() < 2**24  # a float32 holds the integer exactly
            assert np.array_equal(product(isa, codes, bits, x), expected.numpy())


@pytest.mark.parametrize("isa", usable())
@pytest.mark.parametrize("bits", WIDTHS)
def test_groups_and_scales_give_the_bits_of_the_scalar_row(isa, bits):
    for columns, group in ((172, 32), (300, 128), (688, 128), (576, 64)):
        codes = weights(40, columns, bits)
        scale = (torch.rand(40, -(-columns // group)) * 0.01 + 1e-3).half()
        for tokens in TOKENS:
            x, x_scale = activations(tokens, columns), torch.rand(tokens)
            found = product(isa, codes, bits, x, group, scale, x_scale)
            assert np.array_equal(found, product("scalar", codes, bits, x, group, scale, x_scale))
            level, unit = levels(codes, bits)
            expected = functional.integer_linear(
                x, x_scale[:, None], level, scale.float() * unit, group
            )
            np.testing.assert_allclose(found, expected.numpy(), rtol=2e-5, atol=2e-3)


@pytest.mark.parametrize("isa", usable())
def test_no_columns_and_no_tokens(isa):
    tiles, codes = np.zeros((1, 0, 64), np.uint8), np.zeros((2, 0), np.int8)
    ones = np.ones(2, np.float32)
    assert not native.product(isa, tiles, None, 4, (5, 0), None, codes, ones).any()
    assert product(isa, weights(5, 8, 4), 4, torch.zeros(0, 8, dtype=torch.int8)).shape == (0, 5)


@pytest.mark.parametrize("isa", usable())
@pytest.mark.parametrize("bits", (2, 3, 4, 6, 8))
@pytest.mark.parametrize("columns", (1, 15, 17, 172, 2048))
def test_activation_codes_equal_torch_exactly(isa, bits, columns):
    values = torch.randn(9, columns) * torch.logspace(-6, 4, 9)[:, None]
    values[0] = 0.0
    values[1] = -1.0
    values[2] = torch.arange(columns) % 255 - 127.0  # ties and both ends
    clip = ACTIVATION_CLIP.get(bits, 1.0)
    codes, scale = functional.quantize_dynamic(values, grid_of(bits), clip)
    found, found_scale = native.quantize(isa, values.numpy(), bits, clip)
    assert np.array_equal(found, codes.numpy())
    assert np.array_equal(found_scale, scale.squeeze(1).numpy())


@pytest.mark.parametrize("isa", usable())
@pytest.mark.parametrize("bits", (2, 3, 4))
@pytest.mark.parametrize("columns", (1, 8, 17, 64, 128))
def test_cache_codes_equal_torch_exactly(isa, bits, columns):
    values = torch.randn(200, columns) * torch.logspace(-6, 4, 200)[:, None]
    values[0] = 0.0
    values[1] = -1.0
    values[2] = torch.arange(columns) % 9 - 4.0  # ties, zeros and both ends
    codes, scale = functional.quantize_searched(values, grid_of(bits), CACHE_CLIPS[bits])
    found, found_scale = native.quantize_searched(isa, values.numpy(), bits)
    assert np.array_equal(found, codes.numpy())
    assert np.array_equal(found_scale, scale.squeeze(1).half().numpy())


def test_an_instruction_set_is_chosen_once(monkeypatch, choose_isa):
    choose_isa(None)
    monkeypatch.setenv("EDGEQAT_ISA", "mmx")
    with pytest.raises(FormatError, match="EDGEQAT_ISA: 'mmx' is not available here"):
        native.active_isa()
    monkeypatch.setenv("EDGEQAT_ISA", "scalar")
    assert native.active_isa() == "scalar"
    monkeypatch.delenv("EDGEQAT_ISA")
    assert native.active_isa() == "scalar"  # as the first use found it
    choose_isa(usable()[0])
    assert native.active_isa() == usable()[0]


def test_an_unknown_instruction_set_is_refused():
    with pytest.raises(Exception, match="EDGEQAT_ISA: 'mmx' is not available here; choose from"):
        product("mmx", weights(1, 1, 4), 4, activations(1, 1))
