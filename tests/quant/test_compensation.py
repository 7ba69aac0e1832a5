"""Error-compensated rounding: its codes lose less on the inputs it was given."""

from __future__ import annotations

import pytest
import torch

from edgeqat.quant import compensation
from edgeqat.quant.lsq import WeightQuantizer


def inputs(columns: int, seed: int = 0) -> torch.Tensor:
    """Second moments (I, I) of correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator)
    x = torch.randn(4 * columns, columns, generator=generator) @ mixing
    return x.t() @ x / len(x)


def weights(rows: int, columns: int, seed: int = 1) -> torch.Tensor:
    return 0.02 * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def loss(weight, rounded, hessian) -> float:
    error = weight - rounded
    return ((error @ hessian) * error).sum().item()


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6])
@pytest.mark.parametrize(
    ("granularity", "size"), [("per_group", 32), ("per_channel", None), ("per_tensor", None)]
)
@torch.no_grad()
def test_it_loses_less_than_rounding_to_the_nearest(bits, granularity, size):
    weight, hessian = weights(48, 96), inputs(96)
    nearest = WeightQuantizer((48, 96), bits, granularity, size)
    nearest.initialize(weight)
    quantizer = WeightQuantizer((48, 96), bits, granularity, size)
    (latent,), damping = compensation.compensate([quantizer], [weight], hessian)
    assert damping == compensation.DAMPING
    before, after = (
        loss(weight, q(w), hessian) for q, w in ((nearest, weight), (quantizer, latent))
    )
    assert after < 0.8 * before


@torch.no_grad()
def test_a_hand_computed_pair_of_columns():
    # the inputs of both columns are equal: what the first loses the second makes up for
    quantizer = WeightQuantizer((1, 2), 4, "per_tensor", None)
    weight = torch.tensor([[0.40, 0.70]])
    hessian = torch.tensor([[1.0, 0.999], [0.999, 1.0]])
    (latent,), _ = compensation.compensate([quantizer], [weight], hessian)
    rounded = quantizer(latent)
    assert abs(rounded.sum().item() - 1.1) < 0.06
    scale = quantizer.scale.abs().item()
    assert (rounded / scale).round().sub(rounded / scale).abs().max() < 1e-3


@torch.no_grad()
def test_layers_that_share_inputs_are_rounded_as_each_alone():
    hessian, one, two = inputs(64), weights(32, 64, 1), weights(16, 64, 2)
    made = [WeightQuantizer((rows, 64), 4, "per_group", 32) for rows in (32, 16, 32, 16)]
    together, _ = compensation.compensate(made[:2], [one, two], hessian)
    for quantizer, weight, latent, same in zip(made[2:], (one, two), together, made, strict=False):
        (alone,), _ = compensation.compensate([quantizer], [weight], hessian)
        assert torch.allclose(alone, latent, atol=1e-6)
        assert torch.equal(quantizer.codes(alone)[0], same.codes(latent)[0])


@torch.no_grad()
def test_latent_weights_stay_within_the_codes():
    quantizer = WeightQuantizer((32, 64), 3, "per_group", 32)
    (latent,), _ = compensation.compensate([quantizer], [weights(32, 64)], inputs(64))
    ratio = latent.view(32, 2, 32) / quantizer.scale.half().float().unsqueeze(-1)
    assert ratio.min() >= quantizer.grid.qmin
    assert ratio.max() <= quantizer.grid.qmax


@torch.no_grad()
def test_dead_inputs_and_too_few_tokens_are_rounded_all_the_same():
    hessian = inputs(64)
    hessian[:8], hessian[:, :8] = 0, 0
    weight = weights(16, 64)
    quantizer = WeightQuantizer((16, 64), 4, "per_group", 32)
    (latent,), _ = compensation.compensate([quantizer], [weight], hessian)
    assert latent.isfinite().all()
    x = torch.randn(2, 64)
    few = x.t() @ x
    (latent,), _ = compensation.compensate([quantizer], [weight], few)
    assert latent.isfinite().all()
    (latent,), damping = compensation.compensate([quantizer], [weight], -few)  # no such moments
    assert latent.isfinite().all()
    assert damping > compensation.DAMPING


@torch.no_grad()
def test_scales_are_signed_so_that_all_codes_are_used():
    quantizer = WeightQuantizer((64, 64), 4, "per_group", 32)
    (latent,), _ = compensation.compensate([quantizer], [weights(64, 64)], inputs(64))
    assert (quantizer.scale < 0).any()
    codes, scale = quantizer.codes(latent)
    assert codes.min() == -8
    restored = codes.float().view(64, 2, 32) * scale.float().unsqueeze(-1)
    assert torch.equal(restored.view(64, 64), quantizer(latent))


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize(
    ("granularity", "size"), [("per_group", 40), ("per_channel", None), ("per_tensor", None)]
)
@torch.no_grad()
def test_each_sweep_of_coordinate_descent_loses_less(bits, granularity, size, monkeypatch):
    weight, hessian = weights(48, 192), inputs(192)  # groups of 40: the last one is short
    losses = []
    for sweeps in (0, 1, 2, 4):
        monkeypatch.setattr(compensation, "_SWEEPS", sweeps)
        quantizer = WeightQuantizer((48, 192), bits, granularity, size)
        (latent,), damping = compensation.compensate([quantizer], [weight], hessian)
        damped = hessian + damping * hessian.diagonal().mean() * torch.eye(192)
        losses.append(loss(weight, quantizer(latent), damped))
    assert losses[1] < 0.995 * losses[0]
    assert losses == sorted(losses, reverse=True)


@torch.no_grad()
def test_no_single_code_can_be_moved_for_the_better_in_the_end(monkeypatch):
    monkeypatch.setattr(compensation, "_SWEEPS", 30)
    weight, hessian = weights(4, 24), inputs(24)
    quantizer = WeightQuantizer((4, 24), 3, "per_group", 8)
    (latent,), damping = compensation.compensate([quantizer], [weight], hessian)
    damped = hessian + damping * hessian.diagonal().mean() * torch.eye(24)
    codes, scale = quantizer.codes(latent)
    wide = scale.float().repeat_interleave(8, 1)
    least = loss(weight, codes * wide, damped)
    for row in range(4):
        for column in range(24):
            for step in (-1, 1):
                moved = codes.float().clone()
                moved[row, column] = (moved[row, column] + step).clamp(-4, 3)
                assert loss(weight, moved * wide, damped) >= least * (1 - 1e-5)
