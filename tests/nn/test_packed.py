"""Packed layers on their own: specs, bias, the integer path against int64, padding."""

from __future__ import annotations

import json

import pytest
import torch

from edgeqat.nn.adaptive import AdaptiveQuantizer, TokenWidths
from edgeqat.nn.packed import PackedEmbedding, PackedLinear, PackedSpec
from edgeqat.quant import functional
from edgeqat.scheme import grid_of


def linear(rows=20, columns=70, bits=4, group_size=32, input_bits=8, bias=True):
    made = PackedLinear(
        PackedSpec("linear", (rows, columns), bits, group_size, input_bits, bias=bias)
    )
    grid = grid_of(bits)
    codes = torch.randint(grid.qmin, grid.qmax + 1, (rows, columns), dtype=torch.int8)
    groups = -(-columns // group_size) if group_size else 1
    made.store(codes, (torch.rand(rows, groups) + 0.1).half())
    if bias:
        made.bias.data = torch.randn(rows)
    return made, codes


def test_specs_survive_json():
    spec = PackedSpec("linear", (20, 70), 4, 32, 8, "static", True, "model.embed_tokens")
    assert PackedSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
@pytest.mark.parametrize("group_size", [32, None])
def test_stored_codes_and_scales_are_read_back(bits, group_size):
    made, codes = linear(bits=bits, group_size=group_size)
    assert torch.equal(made.codes(), codes)
    assert made.scale().shape == (20, 3 if group_size else 1)
    assert made.scale().dtype == torch.float32


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
@pytest.mark.parametrize("input_bits", [2, 4, 8])
def test_the_integer_path_is_the_sum_of_integers(bits, input_bits):
    made, codes = linear(bits=bits, input_bits=input_bits)
    made.integer = True
    values = torch.randn(2, 3, 70)
    flat = values.flatten(0, 1)
    grid, inputs = grid_of(bits), grid_of(input_bits)
    activation, scale = functional.quantize_dynamic(flat, inputs, made.input_quantizer.clip)
    doubled = (2 * (activation + inputs.offset)).long()
    weight = (2 * (codes.float() + grid.offset)).long()
    expected = torch.zeros(6, 20, dtype=torch.float64)
    for group in range(3):
        part = slice(32 * group, 32 * group + 32)
        sums = (doubled[:, part] @ weight[:, part].T).double() / 4
        expected += sums * made.scale()[:, group].double()
    expected = expected * scale.double() + made.bias
    found = made(values)
    assert found.shape == (2, 3, 20)
    assert torch.allclose(found.flatten(0, 1), expected.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
@pytest.mark.parametrize("input_bits", [2, 4, 8])
def test_both_paths_compute_the_same_layer(bits, input_bits):
    made, _ = linear(bits=bits, input_bits=input_bits)
    values = torch.randn(4, 70)
    expected = made(values)
    made.integer = True
    assert torch.allclose(made(values), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("input_bits", [2, 4])
def test_tokens_of_two_widths_are_one_product(input_bits, monkeypatch):
    made, _ = linear(input_bits=input_bits)
    wide, _ = linear(input_bits=8)
    widths, values = TokenWidths(1, 0.5), torch.randn(2, 6, 70)
    low, high = made.input_quantizer, wide.input_quantizer
    made.integer, expected = True, []
    for own in (high, low):
        made.input_quantizer = own
        expected.append(made(values))
    widths.high = torch.rand(2, 6) < 0.5
    made.input_quantizer = AdaptiveQuantizer(low, high, widths)
    calls, product = [], functional.integer_linear
    monkeypatch.setattr(
        functional, "integer_linear", lambda *given: calls.append(1) or product(*given)
    )
    found = made(values)
    assert len(calls) == 1
    assert torch.equal(found, torch.where(widths.high[..., None], *expected))


@pytest.mark.parametrize("columns", [255, 256, 257, 700])
def test_wide_rows_have_exact_sums(columns):
    codes = torch.randint(-127, 128, (3, columns), dtype=torch.int8)
    weight = torch.randint(-127, 128, (5, columns), dtype=torch.int8)
    found = functional.integer_linear(
        codes, torch.ones(3, 1), weight, torch.ones(5, 1), group_size=None
    )
    assert torch.equal(found, (codes.long() @ weight.long().T).float())


@pytest.mark.parametrize("integer", [False, True])
def test_a_zero_input_gives_the_bias(integer):
    for bits in (2, 4):
        for input_bits in (2, 4, 8):
            made, _ = linear(bits=bits, input_bits=input_bits)
            made.integer = integer
            assert torch.equal(made(torch.zeros(1, 70)), made.bias[None])


def test_the_float_weight_is_unpacked_once():
    made, _ = linear()
    assert made.dequantized() is made.dequantized()
    made.store(torch.zeros(20, 70, dtype=torch.int8), torch.ones(20, 3).half())
    assert (made.dequantized() == 0).all()


def test_packed_parameters_are_frozen():
    made, _ = linear(bias=False)
    assert {name: p.requires_grad for name, p in made.named_parameters()} == {
        "weight": False,
        "weight_scale": False,
    }
    assert made.bias is None


def test_a_packed_embedding_looks_up_rows():
    made = PackedEmbedding(PackedSpec("embedding", (40, 12), 8, None))
    codes = torch.randint(-128, 128, (40, 12), dtype=torch.int8)
    scale = torch.rand(40, 1).half()
    made.store(codes, scale)
    index = torch.tensor([[3, 39], [0, 3]])
    assert torch.equal(made(index), (codes.float() * scale.float())[index])


def test_packed_bytes_are_what_the_width_says():
    for bits in (1, 2, 3, 4, 6, 8):
        made, _ = linear(rows=32, columns=64, bits=bits)
        assert made.weight.numel() == 32 * 64 * bits // 8
        assert made.weight_scale.numel() == 32 * 2
