"""Distillation against a plain torch reference, a 2x3 example worked by hand, and its options."""

from __future__ import annotations

import math

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from edgeqat.losses.distill import IGNORE, Kept, distill


def reference(student, teacher, labels, gamma, temperature, count=None):
    keep = labels != IGNORE
    count = keep.sum() if count is None else count
    rows = student[keep]
    cross_entropy = F.cross_entropy(rows, labels[keep], reduction="sum") / count
    divergence = F.kl_div(
        (rows / temperature).log_softmax(-1),
        (teacher[keep] / temperature).log_softmax(-1),
        log_target=True,
        reduction="sum",
    )
    divergence = temperature**2 * divergence / count
    return (1 - gamma) * cross_entropy + gamma * divergence, cross_entropy, divergence


def batch(rows=7, vocabulary=11, seed=0):
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(rows, vocabulary, generator=generator, requires_grad=True)
    teacher = torch.randn(rows, vocabulary, generator=generator)
    labels = torch.randint(vocabulary, (rows,), generator=generator)
    return student, teacher, labels


@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.5])
@pytest.mark.parametrize("rows", [1, 7, 600])
def test_loss_and_gradient_equal_the_plain_formula(gamma, temperature, rows):
    student, teacher, labels = batch(rows)
    loss, cross_entropy, divergence = distill(student, teacher, labels, gamma, temperature)
    expected = reference(student, teacher, labels, gamma, temperature)
    assert loss.item() == pytest.approx(expected[0].item(), rel=1e-5)
    assert cross_entropy.item() == pytest.approx(expected[1].item(), rel=1e-5)
    if gamma > 0:
        assert divergence.item() == pytest.approx(expected[2].item(), rel=1e-4)
    (found,) = torch.autograd.grad(loss, student)
    (gradient,) = torch.autograd.grad(expected[0], student)
    assert torch.allclose(found, gradient, rtol=1e-4, atol=1e-7)


def test_two_rows_of_three_by_hand():
    # student p = (1/2, 1/4, 1/4), (1/4, 1/4, 1/2); teacher q = (1/4, 1/4, 1/2), (1/4, 1/4, 1/2)
    student = torch.tensor([[2.0, 1.0, 1.0], [1.0, 1.0, 2.0]]).log().requires_grad_()
    teacher = torch.tensor([[1.0, 1.0, 2.0], [1.0, 1.0, 2.0]]).log()
    loss, cross_entropy, divergence = distill(student, teacher, torch.tensor([0, 1]), 0.5)
    # CE = (ln 2 + ln 4) / 2; KL = (1/4 ln(1/2) + 1/2 ln 2) / 2 = ln 2 / 8
    assert cross_entropy.item() == pytest.approx(1.5 * math.log(2), rel=1e-6)
    assert divergence.item() == pytest.approx(math.log(2) / 8, rel=1e-5)
    assert loss.item() == pytest.approx((1.5 + 0.125) / 2 * math.log(2), rel=1e-6)
    loss.backward()
    # [(p - onehot) + (p - q)] / 2 rows / 2
    expected = torch.tensor([[-0.25, 0.25, 0.0], [0.25, -0.75, 0.5]]) / 4
    expected = torch.tensor([[-0.5 + 0.25, 0.25 + 0.0, 0.25 - 0.25], [0.25, -0.75, 0.5]]) / 4
    assert torch.allclose(student.grad, expected, atol=1e-7)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_ignored_labels_count_in_neither_term(gamma, temperature):
    student, teacher, labels = batch(9)
    labels[[0, 4, 8]] = IGNORE
    loss, *terms = distill(student, teacher, labels, gamma, temperature)
    expected = reference(student, teacher, labels, gamma, temperature)
    assert loss.item() == pytest.approx(expected[0].item(), rel=1e-5)
    assert terms[0].item() == pytest.approx(expected[1].item(), rel=1e-5)
    (found,) = torch.autograd.grad(loss, student)
    (gradient,) = torch.autograd.grad(expected[0], student)
    assert torch.allclose(found, gradient, rtol=1e-4, atol=1e-7)
    assert (found[[0, 4, 8]] == 0).all()


def test_a_batch_of_ignored_labels_costs_nothing():
    student, teacher, labels = batch(3)
    loss, *_ = distill(student, teacher, torch.full_like(labels, IGNORE), 0.5)
    loss.backward()
    assert loss.item() == 0
    assert (student.grad == 0).all()


def test_the_divisor_can_be_that_of_the_whole_step():
    student, teacher, labels = batch(8)
    whole, *_ = distill(student, teacher, labels, 0.5, 2.0)
    halves = [
        distill(student[part], teacher[part], labels[part], 0.5, 2.0, torch.tensor(8))[0]
        for part in (slice(0, 3), slice(3, 8))
    ]
    assert sum(halves).item() == pytest.approx(whole.item(), rel=1e-6)
    (expected,) = torch.autograd.grad(whole, student)
    (found,) = torch.autograd.grad(sum(halves), student)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-8)


def test_no_teacher_is_plain_cross_entropy():
    student, _, labels = batch()
    loss, cross_entropy, divergence = distill(student, None, labels, 0.0)
    assert loss.item() == pytest.approx(F.cross_entropy(student, labels).item(), rel=1e-6)
    assert cross_entropy.item() == loss.item()
    assert divergence.item() == 0


def test_a_student_equal_to_its_teacher_has_no_divergence():
    _, teacher, labels = batch()
    student = teacher.clone().requires_grad_()
    loss, _, divergence = distill(student, teacher, labels, 1.0, 2.0)
    loss.backward()
    assert divergence.item() == pytest.approx(0, abs=1e-6)
    assert student.grad.abs().max() < 1e-6


def test_the_direction_is_teacher_to_student():
    student, teacher = torch.tensor([[5.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    _, _, forward = distill(student, teacher, torch.tensor([0]), 1.0)
    q, p = teacher.softmax(-1), student.softmax(-1)
    assert forward.item() == pytest.approx((q * (q / p).log()).sum().item(), rel=1e-5)


def test_the_gradient_follows_what_the_loss_is_multiplied_with():
    student, teacher, labels = batch()
    (one,) = torch.autograd.grad(distill(student, teacher, labels, 0.5)[0], student)
    (half,) = torch.autograd.grad(distill(student, teacher, labels, 0.5)[0] / 2, student)
    assert torch.allclose(half, one / 2)


def test_large_logits_stay_finite():
    student = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    teacher = torch.tensor([[-1e4, 1e4, 0.0]])
    loss, *_ = distill(student, teacher, torch.tensor([1]), 0.5, 2.0)
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_bf16_logits_are_summed_in_float32(temperature):
    student, teacher, labels = batch(300)
    low = student.detach().bfloat16().requires_grad_()
    loss, *_ = distill(low, teacher.bfloat16(), labels, 0.5, temperature)
    exact = low.detach().float().requires_grad_()
    expected = reference(exact, teacher.bfloat16().float(), labels, 0.5, temperature)[0]
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    expected.backward()
    assert low.grad.dtype == torch.bfloat16
    assert torch.allclose(low.grad.float(), exact.grad, rtol=1e-2, atol=1e-5)


def test_evaluation_makes_no_gradient():
    student, teacher, labels = batch()
    loss, *_ = distill(student.detach(), teacher, labels, 0.5)
    assert not loss.requires_grad


def test_inputs_are_left_alone():
    student, teacher, labels = batch()
    before = student.detach().clone(), teacher.clone(), labels.clone()
    distill(student, teacher, labels, 0.5, 2.0)[0].backward()
    for tensor, copy in zip((student, teacher, labels), before, strict=True):
        assert torch.equal(tensor, copy)


def test_autograd_keeps_no_softmax():
    student, teacher, labels = batch(64)
    saved = []
    with saved_tensors_hooks(lambda t: saved.append(t.shape) or t, lambda t: t):
        distill(student, teacher, labels, 0.5, 2.0)
    assert not [shape for shape in saved if shape.numel() >= student.numel()]


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_the_loss_is_float32_inside_autocast(gamma):
    torch.manual_seed(0)
    student, teacher = torch.randn(8, 50, requires_grad=True), torch.randn(8, 50)
    labels = torch.randint(0, 50, (8,))
    expected = distill(student, teacher, labels, gamma)
    (slope,) = torch.autograd.grad(expected[0], student)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = distill(student, teacher, labels, gamma)
        (other,) = torch.autograd.grad(found[0], student)
    assert all(torch.equal(one, two) for one, two in zip(found, expected, strict=True))
    assert torch.equal(other, slope)


def test_a_kept_row_of_three_by_hand():
    # student p = (1/2, 1/4, 1/4); of the teacher q(0) = 1/4 is known, so q_r = 3/4 and p_r = 1/2
    student = torch.tensor([[2.0, 1.0, 1.0]]).log().requires_grad_()
    kept = Kept(torch.tensor([[0.25]]).log(), torch.tensor([[0]]))
    loss, _, divergence = distill(student, kept, torch.tensor([0]), 1.0)
    expected = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert divergence.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()  # p - q, where q shares 3/4 out equally, as the student does
    assert torch.allclose(student.grad, torch.tensor([[0.25, -0.125, -0.125]]), atol=1e-6)


@pytest.mark.parametrize("rows", [3, 40])
def test_all_kept_tokens_are_the_whole_teacher(rows):
    student, teacher, labels = batch(rows)
    values, tokens = teacher.log_softmax(-1).topk(teacher.shape[-1], dim=-1)
    whole, *terms = distill(student, teacher, labels, 0.5)
    loss, *found = distill(student, Kept(values, tokens), labels, 0.5)
    assert [t.item() for t in found] == pytest.approx([t.item() for t in terms], rel=1e-4)
    gradients = [torch.autograd.grad(one, student)[0] for one in (loss, whole)]
    assert torch.allclose(*gradients, rtol=1e-3, atol=1e-6)


def test_fewer_kept_tokens_give_a_smaller_divergence():
    student, teacher, labels = batch(20)
    found = []
    for kept in (1, 4, 8, 11):
        values, tokens = teacher.log_softmax(-1).topk(kept, dim=-1)
        found.append(distill(student, Kept(values, tokens), labels, 1.0)[2].item())
    assert found == sorted(found) and found[0] > 0
