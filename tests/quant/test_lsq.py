"""Learned-scale quantizers: granularities, the scale that is stored, initialisation."""

from __future__ import annotations

import pytest
import torch

from edgeqat.errors import ModelError
from edgeqat.quant import functional
from edgeqat.quant.lsq import StaticQuantizer, WeightQuantizer

WIDTHS = [1, 2, 3, 4, 6, 8]
GRANULARITIES = ["per_tensor", "per_channel", "per_group"]


def quantizer(weight, bits=4, granularity="per_group", group_size=32, method="mse"):
    made = WeightQuantizer(tuple(weight.shape), bits, granularity, group_size)
    made.initialize(weight, method)
    return made


@pytest.mark.parametrize(
    ("granularity", "shape"),
    [("per_tensor", (1, 1)), ("per_channel", (6, 1)), ("per_group", (6, 3))],
)
def test_scales_have_the_shape_of_their_granularity(granularity, shape):
    assert quantizer(torch.randn(6, 80), granularity=granularity).scale.shape == shape


def test_a_row_shorter_than_a_group_has_one_scale():
    made = quantizer(torch.randn(6, 20), group_size=128)
    assert made.scale.shape == (6, 1)
    assert made.group_size is None


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("columns", [64, 80, 31])
def test_codes_are_those_of_the_forward_pass(bits, granularity, columns):
    weight = torch.randn(5, columns)
    made = quantizer(weight, bits, granularity)
    with torch.no_grad():
        made.scale.mul_(1 + 0.3 * torch.rand_like(made.scale))
    codes, scale = made.codes(weight)
    assert codes.dtype == torch.int8
    assert codes.shape == weight.shape
    assert scale.dtype == torch.float16
    assert scale.shape == (5, made.scale.shape[1])
    spread = scale.float().repeat_interleave(made.group_size or columns, dim=1)[:, :columns]
    assert torch.equal(functional.dequantize(codes, spread, made.grid), made(weight).detach())


def test_training_sees_the_scale_rounded_to_fp16():
    weight = torch.linspace(-1, 1, 32)[None]
    made = quantizer(weight)
    with torch.no_grad():
        made.scale.fill_(0.1)
    stored = torch.tensor(0.1).half().float()
    assert torch.equal(made(weight), (weight / stored).round().clamp(-8, 7) * stored)


@pytest.mark.parametrize("value", [0.0, -1e-9, 1e-9])
def test_a_scale_that_fell_is_used_as_the_smallest(value):
    weight = torch.full((1, 32), 2 * functional.FP16_MIN_SCALE)
    made = quantizer(weight)
    with torch.no_grad():
        made.scale.fill_(value)
    smallest = functional.FP16_MIN_SCALE if value >= 0 else -functional.FP16_MIN_SCALE
    assert torch.equal(made(weight), weight)
    assert made.codes(weight)[1].tolist() == [[smallest]]


def test_a_negative_scale_turns_the_grid_around():
    weight = torch.tensor([[1.0, -0.875, 0.125, 0.4]])
    made = quantizer(weight)
    with torch.no_grad():
        made.scale.fill_(-0.125)
    assert made(weight).tolist() == [[1.0, -0.875, 0.125, 0.375]]
    assert made.codes(weight)[0].tolist() == [[-8, 7, -1, -3]]


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("bits", WIDTHS)
def test_weight_and_scale_get_a_gradient(granularity, bits):
    weight = torch.nn.Parameter(torch.randn(5, 80))
    made = quantizer(weight, bits, granularity)
    made(weight).square().sum().backward()
    assert weight.grad.abs().sum() > 0
    assert made.scale.grad.shape == made.scale.shape
    assert (made.scale.grad != 0).all()


def test_the_gradient_of_a_scale_is_divided_by_the_values_it_serves():
    weight, up = torch.randn(4, 96), torch.randn(4, 96)
    made = quantizer(weight)
    made(weight).backward(up)
    scale = functional.round_to_fp16(made.scale)
    values, scale = weight[2, 32:64], scale[2, 1]
    ratio = values / scale
    slope = torch.where(
        (ratio < -8) | (ratio > 7), ratio.clamp(-8, 7), ratio.round().clamp(-8, 7) - ratio
    )
    expected = (slope * up[2, 32:64]).sum() * (32 * 7) ** -0.5
    assert made.scale.grad[2, 1].item() == pytest.approx(expected.item(), rel=1e-4)


def test_looked_up_rows_equal_the_rows_of_the_whole_weight():
    weight = torch.nn.Parameter(torch.randn(10, 24))
    made = quantizer(weight, 8, "per_channel", None)
    rows = torch.tensor([7, 0, 7])
    assert torch.equal(made(weight[rows], rows=rows), made(weight)[rows])
    made(weight[rows], rows=rows).sum().backward()
    untouched = [row for row in range(10) if row not in (0, 7)]
    assert (made.scale.grad[untouched] == 0).all()


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_lsq_initialisation_is_its_formula(granularity):
    weight = torch.randn(4, 64)
    made = quantizer(weight, 4, granularity, method="lsq")
    parts = {
        "per_tensor": weight.reshape(1, 1, -1),
        "per_channel": weight.reshape(4, 1, -1),
        "per_group": weight.reshape(4, 2, 32),
    }
    expected = 2 * parts[granularity].abs().mean(-1) / 7**0.5
    assert torch.allclose(made.scale, expected)


def test_lsq_initialisation_ignores_the_padding_of_a_short_group():
    made = quantizer(torch.ones(1, 40), 4, method="lsq")
    assert made.scale[0, 1].item() == pytest.approx(made.scale[0, 0].item())


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_mse_initialisation_is_no_worse_than_its_neighbours_or_lsq(granularity):
    weight = torch.randn(8, 80)
    for bits in WIDTHS:
        made = quantizer(weight, bits, granularity)
        assert made.initialized.item()
        error = (made(weight) - weight).square().sum().item()
        for factor in (0.7, 1.4):
            other = quantizer(weight, bits, granularity)
            with torch.no_grad():
                other.scale.mul_(factor)
            assert error <= (other(weight) - weight).square().sum().item()
        other = quantizer(weight, bits, granularity, method="lsq")
        assert error <= (other(weight) - weight).square().sum().item()


def test_switched_off_it_passes_the_weight_through():
    weight = torch.randn(4, 64)
    made = quantizer(weight)
    made.enabled = False
    assert made(weight) is weight
    assert "disabled" in repr(made)
    static = StaticQuantizer(8)
    static.enabled = False
    assert static(weight) is weight


def test_quantizers_describe_themselves():
    assert (
        repr(quantizer(torch.randn(4, 64))) == "WeightQuantizer(bits=4, per_group, group_size=32)"
    )
    assert repr(StaticQuantizer(8)) == "StaticQuantizer(bits=8, static per_tensor)"


def test_static_quantizer_learns_its_range_from_what_it_observes():
    made = StaticQuantizer(8)
    assert made.scale.shape == made.beta.shape == (1,)
    assert not made.initialized.item()
    made.observe()
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        batch = torch.rand(4, 100, generator=generator) * 4 - 1
        assert made(batch) is batch
    made.finish()
    assert made.initialized.item()
    values = torch.linspace(-1, 3, 100)
    assert (made(values) - values).abs().max() < 4 / 255


def test_the_first_batch_of_training_starts_a_static_quantizer():
    made, values = StaticQuantizer(8), torch.linspace(-1, 3, 1000)
    with pytest.raises(ModelError, match=r"edgeqat\.calibrate"):
        made.eval()(values)
    assert (made.train()(values) - values).abs().max() < 4 / 255
    scale = made.scale.item()
    made(100 * values)
    assert made.scale.item() == scale
    assert (made.eval()(values) - values).abs().max() < 4 / 255
    other = StaticQuantizer(8)
    other.load_state_dict(made.state_dict())
    assert torch.equal(other.eval()(values), made(values))


def test_static_scale_and_offset_get_a_gradient():
    made = StaticQuantizer(4)
    values = torch.randn(64, requires_grad=True) * 20
    made(values).square().sum().backward()
    assert made.scale.grad.abs().item() > 0
    assert made.beta.grad.abs().item() > 0


def test_state_dict_holds_scale_and_initialized():
    made = quantizer(torch.randn(4, 64))
    other = WeightQuantizer((4, 64), 4, "per_group", 32)
    other.load_state_dict(made.state_dict())
    assert other.initialized.item()
    assert torch.equal(other.scale, made.scale)


def test_a_scale_that_training_took_below_zero_is_the_smallest():
    made = StaticQuantizer(4)
    made.initialized.fill_(True)
    with torch.no_grad():
        made.scale.fill_(-0.1)
    two_steps = 2 * functional.STATIC_MIN_SCALE
    assert made(torch.tensor([two_steps])).item() == two_steps
