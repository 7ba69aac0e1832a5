"""Distillation whose logits are computed a part at a time: the numbers of the whole ones."""

from __future__ import annotations

import pytest
import torch

from edgeqat.losses import distill as module
from edgeqat.losses.distill import IGNORE, HeadProduct, Kept, distill, distill_heads

ROWS, WIDTH, VOCABULARY = 70, 8, 11


def product(seed, vocabulary=VOCABULARY, dtype=torch.float32, trained=True):
    generator = torch.Generator().manual_seed(seed)
    shapes = (ROWS, WIDTH), (vocabulary, WIDTH), (vocabulary,)
    parts = [torch.randn(*shape, generator=generator).requires_grad_(trained) for shape in shapes]
    return HeadProduct(*parts, dtype)


def labels():
    made = torch.randint(VOCABULARY, (ROWS,), generator=torch.Generator().manual_seed(9))
    made[::5] = IGNORE
    return made


def whole(head):
    return head.hidden @ head.weight.t() + head.bias


@pytest.mark.parametrize("held", [2**25, 20 * VOCABULARY])
@pytest.mark.parametrize(("gamma", "temperature"), [(0.0, 1.0), (0.5, 2.0), (1.0, 1.0)])
def test_loss_and_gradients_are_those_of_whole_logits(monkeypatch, held, gamma, temperature):
    monkeypatch.setattr(module, "_LOGITS", held)
    student, teacher = product(0), product(1, trained=False)
    found = distill_heads(student, teacher, labels(), gamma, temperature)
    expected = distill(whole(student), whole(teacher), labels(), gamma, temperature)
    for one, other in zip(found, expected, strict=True):
        assert one.item() == pytest.approx(other.item(), rel=1e-5)
    inputs = student[:3]
    grads = torch.autograd.grad(3 * found[0], inputs)
    for one, other in zip(grads, torch.autograd.grad(3 * expected[0], inputs), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_a_teachers_further_rows_are_padding_and_its_logits_may_be_there():
    student, teacher = product(0), product(1, vocabulary=VOCABULARY + 3, trained=False)
    expected = distill(whole(student), whole(teacher)[:, :VOCABULARY], labels(), 1.0)
    for given in (teacher, whole(teacher)):
        found = distill_heads(student, given, labels(), 1.0)
        assert found[0].item() == pytest.approx(expected[0].item(), rel=1e-5)


def test_a_frozen_head_gets_no_gradient():
    student = product(0)
    student.weight.requires_grad_(False)
    distill_heads(student._replace(bias=None), product(1, trained=False), labels(), 1.0)[
        0
    ].backward()
    assert student.weight.grad is None and student.hidden.grad.abs().sum() > 0


def test_bf16_products_keep_gradients_in_float32():
    student = product(0, dtype=torch.bfloat16)
    teacher = product(1, trained=False, dtype=torch.bfloat16)
    found = distill_heads(student, teacher, labels(), 1.0)[0]
    exact = distill(whole(student), whole(teacher), labels(), 1.0)[0]
    assert found.item() == pytest.approx(exact.item(), rel=2e-2)
    found.backward()
    assert student.weight.grad.dtype == student.hidden.grad.dtype == torch.float32


def test_one_rows_logits_are_all_that_is_held(monkeypatch):
    seen = []

    def watched(head, rows, weight):
        seen.append(rows.stop - rows.start)
        return logits(head, rows, weight)

    logits = HeadProduct.logits
    monkeypatch.setattr(HeadProduct, "logits", watched)
    monkeypatch.setattr(module, "_LOGITS", 20 * VOCABULARY)
    distill_heads(product(0), product(1, trained=False), labels(), 1.0)
    assert max(seen) == 20


def test_kept_tokens_of_a_teacher_are_taken_part_by_part(monkeypatch):
    student, taught = product(0), whole(product(1, trained=False)).log_softmax(-1)
    kept = Kept(*taught.topk(4, dim=-1))
    loss, *terms = distill(whole(student), kept, labels(), 0.5)
    expected = torch.autograd.grad(loss, student.weight)
    monkeypatch.setattr(module, "_LOGITS", 20 * VOCABULARY)  # 20 rows at a time
    loss, *found = distill_heads(student, kept, labels(), 0.5)
    assert [t.item() for t in found] == pytest.approx([t.item() for t in terms], rel=1e-5)
    assert torch.allclose(*torch.autograd.grad(loss, student.weight), *expected, atol=1e-6)
