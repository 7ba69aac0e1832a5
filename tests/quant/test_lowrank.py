"""Low-rank adapters inside the rounding: start, gradients against autograd, merge."""

from __future__ import annotations

import pytest
import torch

from edgeqat.quant import functional
from edgeqat.quant.lowrank import LowRankQuantizer
from edgeqat.quant.lsq import WeightQuantizer

BITS = [1, 2, 3, 4, 8]


def made(bits, dtype="float32", columns=70, group_size=32, rank=4, alpha=8):
    torch.manual_seed(0)
    weight = 0.1 * torch.randn(6, columns)
    plain = WeightQuantizer((6, columns), bits, "per_group", group_size)
    plain.initialize(weight)
    quantizer, base = LowRankQuantizer.wrap(plain, weight, rank, alpha, dtype)
    return plain, quantizer, weight, base


def moved(quantizer):
    torch.manual_seed(1)
    with torch.no_grad():
        quantizer.lora_B.normal_(0, 0.3)
        quantizer.scale.mul_(1.1)
    return quantizer


@pytest.mark.parametrize("bits", BITS)
def test_it_starts_where_the_plain_quantizer_is(bits):
    plain, quantizer, weight, base = made(bits)
    assert torch.allclose(quantizer(base), plain(weight), atol=1e-6)
    assert torch.allclose(quantizer.latent(base), weight, atol=1e-3)


@pytest.mark.parametrize(("dtype", "share"), [("bf16", 0.02), ("int8", 0.2)])
def test_a_smaller_base_starts_close(dtype, share):
    plain, quantizer, weight, base = made(4, dtype, columns=256)
    assert base.element_size() <= 2
    changed = (quantizer.codes(base)[0] != plain.codes(weight)[0]).float().mean()
    assert changed < share


@pytest.mark.parametrize("dtype", ["float32", "bf16", "int8"])
@pytest.mark.parametrize("bits", BITS)
def test_packed_codes_are_the_fake_quantized_values_exactly(bits, dtype):
    _, quantizer, weight, base = made(bits, dtype)
    fake = moved(quantizer)(base)
    codes, scale = quantizer.codes(base)
    grouped = functional.to_groups(codes.float(), quantizer.group_size)
    values = functional.dequantize(grouped, scale.float().unsqueeze(-1), quantizer.grid)
    assert torch.equal(functional.from_groups(values, weight.shape[1]), fake)


@pytest.mark.parametrize("bits", BITS)
def test_gradients_are_those_of_the_straight_through_rule(bits):
    _, quantizer, weight, base = made(bits)
    moved(quantizer)
    upstream = torch.randn(6, weight.shape[1])
    quantizer(base).backward(upstream)
    a = quantizer.lora_A.detach().requires_grad_()
    b = quantizer.lora_B.detach().requires_grad_()
    grid = quantizer.grid
    values = base + quantizer.scaling * (b @ a)
    inside = (values >= grid.qmin) & (values <= grid.qmax + 2 * grid.offset)
    scale = functional.round_to_fp16(quantizer.scale)
    steps = scale.repeat_interleave(32, dim=1)[:, : weight.shape[1]]
    straight = torch.where(inside, values, values.detach()) * steps
    expected = torch.autograd.grad(straight, (a, b), upstream)
    assert torch.allclose(quantizer.lora_A.grad, expected[0], atol=1e-5)
    assert torch.allclose(quantizer.lora_B.grad, expected[1], atol=1e-5)
    codes = quantizer.codes(base)[0] + grid.offset
    sums = functional.to_groups(codes * upstream, 32).sum(-1)
    factor = (quantizer.count * max(grid.qmax, 1)) ** -0.5
    assert torch.allclose(quantizer.scale.grad, sums * factor, atol=1e-5)
    assert base.grad is None


def test_switched_off_it_gives_the_latent_weight():
    _, quantizer, _, base = made(2)
    moved(quantizer).enabled = False
    assert torch.equal(quantizer(base), quantizer.latent(base))
    assert "rank=4" in repr(quantizer)
