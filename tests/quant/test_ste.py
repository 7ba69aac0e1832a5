"""Gradient rules of LSQ and LSQ+ against hand-computed 2x3 examples, and what autograd keeps."""

from __future__ import annotations

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from edgeqat.quant import functional, ste
from edgeqat.quant.functional import FP16_MIN_SCALE
from edgeqat.quant.lsq import WeightQuantizer
from edgeqat.scheme import grid_of

UP = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])  # the gradient that arrives


def leaf(values):
    return torch.tensor(values, requires_grad=True)


def test_lsq_by_hand_on_the_integer_grid():
    # scale 0.5: u = v / s = -20, -1.4, 0.6 | 7, 7.2, 2.5; range -8..7
    values = leaf([[-10.0, -0.7, 0.3], [3.5, 3.6, 1.25]])
    scale = leaf([[0.5]])
    found = ste.lsq(values, scale, grid_of(4), count=6)
    assert torch.allclose(found, torch.tensor([[-4.0, -0.5, 0.5], [3.5, 3.5, 1.0]]))
    found.backward(UP)
    assert values.grad.tolist() == [[0, 2, 3], [4, 0, 6]]
    slope = torch.tensor([[-8.0, -1 + 1.4, 1 - 0.6], [7 - 7, 7.0, 2 - 2.5]])
    g = (6 * 7) ** -0.5
    assert scale.grad.shape == (1, 1)
    assert scale.grad.item() == pytest.approx((slope * UP).sum().item() * g, rel=1e-5)


def test_lsq_by_hand_on_the_half_step_grid():
    # scale 1: levels -1.5 -0.5 0.5 1.5, range -2..2; g = 1 / sqrt(6 * 1)
    values = leaf([[-2.5, -1.9, -0.2], [0.1, 1.2, 2.3]])
    scale = leaf([[1.0]])
    found = ste.lsq(values, scale, grid_of(2), count=6)
    assert found.tolist() == [[-1.5, -1.5, -0.5], [0.5, 1.5, 1.5]]
    found.backward(UP)
    assert values.grad.tolist() == [[0, 2, 3], [4, 5, 0]]
    slope = torch.tensor([[-1.5, -1.5 + 1.9, -0.5 + 0.2], [0.5 - 0.1, 1.5 - 1.2, 1.5]])
    assert scale.grad.item() == pytest.approx((slope * UP).sum().item() * 6**-0.5, rel=1e-5)


def test_lsq_gives_every_row_its_own_scale_gradient():
    values = torch.randn(2, 3)
    scale = leaf([[0.1], [0.3]])
    ste.lsq(values, scale, grid_of(4), count=3).backward(UP)
    for row in range(2):
        one = leaf([[scale[row, 0].item()]])
        ste.lsq(values[row : row + 1], one, grid_of(4), count=3).backward(UP[row : row + 1])
        assert scale.grad[row].item() == pytest.approx(one.grad.item(), rel=1e-6)


def test_lsq_gradient_of_the_scale_points_downhill():
    values = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    for bits in (2, 3, 4, 8):
        for factor in (0.3, 3.0):
            scale = functional.mse_scale(values.reshape(1, -1), grid_of(bits)) * factor
            scale.requires_grad_()
            loss = (ste.lsq(values, scale, grid_of(bits), count=512) - values).square().sum()
            loss.backward()
            assert (scale.grad.item() < 0) == (factor < 1), (bits, factor)


def test_lsq_plus_by_hand():
    # scale 0.5, beta 1: u = (v - 1) / 0.5 = -20, -1.4, 0.6 | 7, 7.2, 2.5
    values = leaf([[-9.0, 0.3, 1.3], [4.5, 4.6, 2.25]])
    scale, beta = leaf([0.5]), leaf([1.0])
    found = ste.lsq_plus(values, scale, beta, grid_of(4))
    assert torch.allclose(found, torch.tensor([[-3.0, 0.5, 1.5], [4.5, 4.5, 2.0]]))
    found.backward(UP)
    g = (3 * 7) ** -0.5  # 3 features a sample
    assert values.grad.tolist() == [[0, 2, 3], [4, 0, 6]]
    slope = torch.tensor([[-8.0, -1 + 1.4, 1 - 0.6], [7 - 7, 7.0, 2 - 2.5]])
    assert scale.grad.item() == pytest.approx((slope * UP).sum().item() * g, rel=1e-4)
    # beta: 1 outside the range, 0 inside, and the same g as the scale
    assert beta.grad.item() == pytest.approx((UP[0, 0] + UP[1, 1]).item() * g, rel=1e-5)


def test_lsq_plus_without_offset_is_lsq():
    values = torch.randn(4, 9)
    for bits in (2, 3, 4, 8):
        scale, other, beta = leaf([0.3]), leaf([0.3]), leaf([0.0])
        found = ste.lsq_plus(values, scale, beta, grid_of(bits))
        expected = ste.lsq(values, other, grid_of(bits), count=9)
        assert torch.equal(found, expected)
        found.sum().backward()
        expected.sum().backward()
        assert torch.allclose(scale.grad, other.grad, rtol=1e-5)


def test_dynamic_without_clipping_passes_the_gradient_through():
    values = leaf([[0.3, -2.0, 1.0], [0.0, 0.0, 0.0]])
    ste.dynamic(values, grid_of(8)).backward(UP)
    assert torch.equal(values.grad, UP)


def test_dynamic_with_clipping_stops_the_gradient_of_clipped_values():
    # clip 0.875 of 8: scale 1, range -8..7
    values = leaf([[8.0, 2.0, -6.9], [0.5, -0.6, 8.0]])
    found = ste.dynamic(values, grid_of(4), clip=0.875)
    assert found.tolist() == [[7, 2, -7], [0, -1, 7]]
    found.backward(UP)
    assert values.grad.tolist() == [[0, 2, 3], [4, 5, 0]]


def test_dynamic_clipping_keeps_the_gradient_of_the_lowest_code():
    values = leaf([[8.0, -7.4, -8.0], [8.0, -7.0, 0.0]])  # scale 1: -7.4 and -8.0 have codes
    found = ste.dynamic(values, grid_of(4), clip=0.875)
    assert found.tolist() == [[7, -7, -8], [7, -7, 0]]
    found.backward(UP)
    assert values.grad.tolist() == [[0, 2, 3], [0, 5, 6]]


def test_searched_clipping_ends_where_the_codes_end():
    values = leaf([[16.0, 7.4, -8.0], [-16.0, -7.4, 8.0]])  # scale -1 and 1: -7..8 and -8..7
    found = ste.searched(values, grid_of(4), (0.5, 0.02))
    assert found.tolist() == [[8, 7, -7], [-8, -7, 7]]
    found.backward(UP)
    assert values.grad.tolist() == [[0, 2, 0], [0, 5, 0]]


def test_fp16_scales_of_the_cache_are_what_fp16_stores():
    values = torch.randn(2, 3, 16)
    found = ste.dynamic(values, grid_of(4), fp16_scale=True)
    codes, scale = functional.quantize_dynamic(values, grid_of(4))
    assert torch.equal(found, codes * scale.half().float())


def test_round_scale_is_straight_through():
    scale = leaf([[1e-9, 0.1]])
    found = ste.round_scale(scale)
    assert found.tolist() == [[FP16_MIN_SCALE, torch.tensor(0.1).half().item()]]
    found.backward(torch.tensor([[2.0, 3.0]]))
    assert scale.grad.tolist() == [[2, 3]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_inputs_are_computed_in_float32(dtype):
    values = torch.randn(4, 64).to(dtype)
    for bits in (2, 4, 8):
        found = ste.dynamic(values, grid_of(bits))
        assert found.dtype == dtype
        assert torch.equal(found, ste.dynamic(values.float(), grid_of(bits)).to(dtype))
    found = ste.lsq_plus(values, torch.tensor([0.1]), torch.zeros(1), grid_of(8))
    assert found.dtype == dtype
    expected = ste.lsq_plus(values.float(), torch.tensor([0.1]), torch.zeros(1), grid_of(8))
    assert torch.equal(found, expected.to(dtype))
    assert ste.lsq(values, torch.tensor([0.1]), grid_of(8), 1).dtype == torch.float32


def kept(function, *arguments):
    """What autograd saves while `function` runs, without the arguments themselves."""
    saved, given = [], {argument.data_ptr() for argument in arguments}

    def pack(tensor):
        if tensor.data_ptr() not in given:
            saved.append((tensor.dtype, tuple(tensor.shape)))
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        function(*arguments)
    return saved


def test_lsq_keeps_no_float_copy():
    weight, scale = torch.randn(8, 64, requires_grad=True), leaf([[0.1]])
    for bits in (2, 4):
        assert kept(lambda w, s, b=bits: ste.lsq(w, s, grid_of(b), 512), weight, scale) == []


@pytest.mark.parametrize("columns", [64, 80])
def test_a_weight_quantizer_keeps_its_scale_and_no_copy_of_the_weight(columns):
    weight = torch.randn(8, columns, requires_grad=True)
    made = WeightQuantizer((8, columns), 4, "per_group", 32)
    made.initialize(weight)
    assert {shape for _, shape in kept(made, weight)} <= {(8, made.scale.shape[1])}


def test_dynamic_keeps_nothing_unclipped_and_one_mask_clipped():
    values = torch.randn(4, 64, requires_grad=True)
    for bits in (2, 4, 8):
        assert kept(lambda v, b=bits: ste.dynamic(v, grid_of(b)), values) == []
        clipped = kept(lambda v, b=bits: ste.dynamic(v, grid_of(b), clip=0.75), values)
        assert clipped == [(torch.bool, (4, 64))]


def test_dynamic_keeps_no_mask_without_gradient():
    values = torch.randn(4, 64)
    assert kept(lambda v: ste.dynamic(v, grid_of(4), clip=0.75), values) == []
