"""Layer correction against its definition, and its gradients."""

import math

import pytest
import torch

from edgeqat.losses.layer_correction import layer_correction


@pytest.mark.parametrize("shape, channels", [((2, 5, 3, 3), 1), ((2, 4, 6), -1)])
def test_the_papers_form_is_the_mean_divergence_of_the_student(shape, channels):
    torch.manual_seed(0)
    student, teacher = torch.randn(shape), torch.randn(shape)
    p = student.movedim(channels, -1).flatten(0, -2).softmax(-1).tolist()
    q = teacher.movedim(channels, -1).flatten(0, -2).softmax(-1).tolist()
    total = sum(a * math.log(a / b) for rows in zip(p, q, strict=True)
                for a, b in zip(*rows, strict=True))  # fmt: skip
    found = layer_correction([student], [teacher], "kl").item()
    assert found == pytest.approx(total / student.numel(), rel=1e-4)


def test_all_blocks_are_summed_and_scale_does_not_count():
    torch.manual_seed(0)
    blocks = [torch.randn(2, 3, 4) for _ in range(3)]
    moved = [block + 0.1 * torch.randn_like(block) for block in blocks]
    whole = layer_correction(moved, blocks, "mse")
    parts = sum(layer_correction([a], [b], "mse") for a, b in zip(moved, blocks, strict=True))
    assert torch.allclose(whole, parts)
    larger = layer_correction([10 * m for m in moved], [10 * b for b in blocks], "mse")
    assert torch.allclose(larger, whole)


@pytest.mark.parametrize("form", ["mse", "kl"])
def test_only_the_student_gets_a_gradient_and_equals_are_at_rest(form):
    torch.manual_seed(0)
    teacher = torch.randn(2, 3, 4, requires_grad=True)
    student = torch.randn(2, 3, 4, requires_grad=True)
    layer_correction([student], [teacher], form).backward()
    assert teacher.grad is None and student.grad.abs().max() > 0
    same = teacher.detach().clone().requires_grad_(True)
    loss = layer_correction([same], [teacher], form)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-7) and same.grad.abs().max() < 1e-6


def test_blocks_that_do_not_match_are_an_error():
    with pytest.raises(ValueError, match="1 blocks of the student, 2 of the teacher"):
        layer_correction([torch.rand(1)], [torch.rand(1)] * 2, "mse")
