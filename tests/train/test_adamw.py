"""AdamW with bf16 moments: close to torch's, half the state."""

import pytest
import torch

from edgeqat.train.adamw import AdamWBF16


def descend(kind, steps=60, **options):
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(40, 50))
    target = torch.randn(40, 50)
    optimizer = kind([{"params": [weight], "weight_decay": 0.1}], betas=(0.9, 0.95), **options)
    for _ in range(steps):
        (weight - target).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return weight.detach(), optimizer


def test_it_follows_torch_s_adamw():
    ours, _ = descend(AdamWBF16, lr=0.01)
    theirs, _ = descend(torch.optim.AdamW, lr=0.01)
    start, _ = descend(AdamWBF16, steps=0)
    moved = (theirs - start).norm()
    assert moved > 5
    assert (ours - theirs).norm() < 0.01 * moved


def test_the_moments_are_bf16_and_reload():
    weight, optimizer = descend(AdamWBF16, steps=2)
    (state,) = optimizer.state.values()
    assert state["exp_avg"].dtype == state["exp_avg_sq"].dtype == torch.bfloat16
    fresh = AdamWBF16([torch.nn.Parameter(weight.clone())], betas=(0.9, 0.95))
    saved = optimizer.state_dict()
    saved["param_groups"][0]["params"] = [0]
    fresh.load_state_dict(saved)
    (loaded,) = fresh.state.values()
    assert loaded["step"] == 2
    for moment in ("exp_avg", "exp_avg_sq"):
        assert loaded[moment].dtype == torch.bfloat16
        assert torch.equal(loaded[moment], state[moment])


def test_parameters_without_gradient_stay():
    weight = torch.nn.Parameter(torch.ones(3))
    AdamWBF16([weight], betas=(0.9, 0.95)).step()
    assert torch.equal(weight.detach(), torch.ones(3))


def test_too_slow_an_average_is_refused():
    with pytest.raises(AssertionError, match="bf16"):
        AdamWBF16([torch.nn.Parameter(torch.ones(3))], betas=(0.9, 0.999))
