"""The C++ walks give the numbers of the torch code: values bit for bit, gradients of scales up to
the order of their sums.
"""

from __future__ import annotations

import pytest
import torch
from marks import needs_kernels

from edgeqat import native
from edgeqat.quant import fused, ste
from edgeqat.quant.functional import CACHE_CLIPS
from edgeqat.scheme import grid_of

pytestmark = needs_kernels
BITS = (1, 2, 3, 4, 6, 8)


@pytest.fixture
def in_torch(monkeypatch):
    """Runs a function without the library."""

    def run(function, *arguments):
        with monkeypatch.context() as patch:
            patch.setattr(fused, "supports", lambda *_: False)
            return function(*arguments)

    return run


def lsq(values, scale, bits, group_size, slope):
    values, scale = values.clone().requires_grad_(), scale.clone().requires_grad_()
    output = ste.lsq(values, scale, grid_of(bits), 64, group_size)
    output.backward(slope)
    return output.detach(), values.grad, scale.grad


@pytest.mark.usefixtures("isa", "threads")
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(
    ("rows", "columns", "group_size", "scales"),
    [
        (5, 300, 128, (5, 3)),
        (7, 33, None, (7, 1)),
        (4, 64, None, (1, 1)),
        (300, 512, 32, (300, 16)),
    ],
)
def test_lsq(bits, rows, columns, group_size, scales, in_torch):
    generator = torch.Generator().manual_seed(bits)
    values = torch.randn(rows, columns, generator=generator)
    values[0, :3] = torch.tensor([0.0, -0.0, 1e30])
    scale = torch.rand(scales, generator=generator) + 0.05
    slope = torch.randn(rows, columns, generator=generator)
    assert fused.supports(grid_of(bits), values, scale)
    found = lsq(values, scale, bits, group_size, slope)
    expected = in_torch(lsq, values, scale, bits, group_size, slope)
    torch.testing.assert_close(found[:2], expected[:2], rtol=0, atol=0)
    torch.testing.assert_close(found[2], expected[2], rtol=1e-4, atol=1e-4)


def lsq_plus(values, scale, beta, bits, slope):
    leaves = [tensor.clone().requires_grad_() for tensor in (values, scale, beta)]
    output = ste.lsq_plus(*leaves, grid_of(bits))
    output.backward(slope)
    return output.detach(), *(leaf.grad for leaf in leaves)


@pytest.mark.usefixtures("isa", "threads")
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("shape", [(3, 5, 7), (2, 40, 600), (4, 6, 9, 9), (700,)])
def test_lsq_plus(bits, shape, last, in_torch):
    generator = torch.Generator().manual_seed(bits)
    values, slope = (torch.randn(shape, generator=generator) for _ in range(2))
    if last and len(shape) == 4:
        values = values.to(memory_format=torch.channels_last)
    scale, beta = torch.tensor([0.21]), torch.tensor([-0.4])
    assert fused.supports(grid_of(bits), values, scale)
    found = lsq_plus(values, scale, beta, bits, slope)
    expected = in_torch(lsq_plus, values, scale, beta, bits, slope)
    assert found[0].stride() == expected[0].stride() == values.stride()
    torch.testing.assert_close(found[:2], expected[:2], rtol=0, atol=0)
    torch.testing.assert_close(found[2:], expected[2:], rtol=1e-4, atol=1e-5)


def dynamic(values, bits, clips, fp16_scale, slope):
    values = values.clone().requires_grad_()
    if len(clips) > 1:
        output = ste.searched(values, grid_of(bits), clips)
    else:
        output = ste.dynamic(values, grid_of(bits), clips[0], fp16_scale)
    output.backward(slope)
    return output.detach(), values.grad


@pytest.mark.usefixtures("isa", "threads")
@pytest.mark.parametrize("fp16_scale", [False, True])
@pytest.mark.parametrize("clips", [(1.0,), (0.75,), "searched"])
@pytest.mark.parametrize("bits", BITS)
def test_dynamic(bits, clips, fp16_scale, in_torch):
    if clips == "searched":
        clips = CACHE_CLIPS.get(bits, (1.0,))
    generator = torch.Generator().manual_seed(bits)
    values = torch.randn(150, 3, 512 if len(clips) == 1 else 96, generator=generator)
    values[0, 0] = 0
    values[1, 0, 5] = 1e-35
    values[2, 1] = values[2, 1].abs() * -1e-20
    slope = torch.randn(values.shape, generator=generator)
    assert fused.supports(grid_of(bits), values)
    found = dynamic(values, bits, clips, fp16_scale, slope)
    expected = in_torch(dynamic, values, bits, clips, fp16_scale, slope)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_nan_is_not_hidden(bits, in_torch):
    values = torch.randn(3, 64)
    values[1, 7] = float("nan")
    scale = torch.full((3, 1), 0.1)
    for function in (
        lambda: ste.lsq(values, scale, grid_of(bits), 64),
        lambda: ste.dynamic(values, grid_of(bits)),
        lambda: ste.searched(values, grid_of(bits), CACHE_CLIPS.get(bits, (1.0,))),
    ):
        assert torch.equal(function().isnan(), in_torch(function).isnan())
        assert function().isnan().any()


def test_views_and_other_types(in_torch):
    values = torch.randn(4, 8, 64).transpose(0, 1)
    assert torch.equal(ste.dynamic(values, grid_of(4)), in_torch(ste.dynamic, values, grid_of(4)))
    assert ste.dynamic(values.bfloat16(), grid_of(4)).dtype == torch.bfloat16
    assert ste.dynamic(values.double(), grid_of(4)).dtype == torch.float64
    assert ste.dynamic(torch.empty(0, 64), grid_of(4)).shape == (0, 64)
    assert ste.lsq(torch.empty(0, 8), torch.empty(0, 1), grid_of(4), 1).shape == (0, 8)
    meta = torch.empty(4, 8, device="meta")
    assert not fused.supports(grid_of(4), meta)


def test_a_scale_of_another_shape_is_refused():
    values = torch.randn(4, 64)
    for shape, group_size in (((4, 1), 32), ((3, 1), None), ((1, 1), 16)):
        with pytest.raises(AssertionError, match="scale"):
            ste.lsq(values, torch.ones(shape), grid_of(4), 64, group_size)


def test_a_second_derivative_is_refused():
    values = torch.randn(4, 8, requires_grad=True)
    loss = ste.lsq(values, torch.ones(4, 1), grid_of(4), 8).square().sum()
    slope = torch.autograd.grad(loss, values, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def test_defaults_of_torch_do_not_matter():
    values, scale = torch.randn(4, 8), torch.ones(4, 1)
    expected = lsq(values, scale, 4, None, values)
    torch.set_default_dtype(torch.float64)
    try:
        found = lsq(values, scale, 4, None, values)
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(found, expected)


def test_a_number_alone(in_torch):
    value = torch.tensor(1.5)
    assert ste.dynamic(value, grid_of(4)) == in_torch(ste.dynamic, value, grid_of(4))


@pytest.mark.skipif(
    "OpenMP" not in torch.__config__.parallel_info(), reason="torch has other threads"
)
def test_the_threads_are_those_of_torch():
    torch.ones(1)
    assert native.team(3).threads == 3 and native.team(3).run
