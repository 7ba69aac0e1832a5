"""Distribution guidance against numbers computed by hand, and against plain attention."""

from __future__ import annotations

import math

import pytest
import torch

from edgeqat.losses.distribution import row_distance, row_logits, sample_rows

ROWS = torch.tensor([1, 2])


def two_by_three():
    """Logits of one head, two rows, three keys whose softmax is (.5 .5 0) and (.25 .25 .5)."""
    hidden = -1e4
    return torch.tensor([[[[0.0, 0.0, hidden], [0.0, 0.0, math.log(2)]]]])


def test_the_cosine_form_by_hand():
    teacher = torch.tensor([[[[0.0, -1e4, -1e4], [0.0, 0.0, math.log(2)]]]])
    found = row_distance(two_by_three(), teacher).item()
    assert found == pytest.approx((1 - 0.5 / math.sqrt(0.5) + 0) / 2, abs=1e-6)


def test_the_kl_form_by_hand():
    teacher = torch.tensor([[[[math.log(3), 0.0, -1e4], [0.0, 0.0, math.log(2)]]]])
    expected = (0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)) / 2
    assert row_distance(two_by_three(), teacher, "kl").item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("form", ["cosine", "kl"])
def test_descending_brings_the_rows_together(form):
    student = torch.randn(2, 3, 4, 5).requires_grad_()
    teacher = torch.randn(2, 3, 4, 5)
    before = row_distance(student, teacher, form)
    before.backward()
    after = row_distance(student - 0.5 * student.grad / student.grad.norm(), teacher, form)
    assert 0 < after < before
    assert row_distance(teacher, teacher, form).item() == pytest.approx(0, abs=1e-6)


def test_rows_that_do_not_count_are_left_out():
    student, teacher = torch.randn(2, 1, 2, 3), torch.randn(2, 1, 2, 3)
    keep = torch.tensor([[True, False], [True, False]])
    for form in ("cosine", "kl"):
        expected = row_distance(student[:, :, :1], teacher[:, :, :1], form)
        assert torch.allclose(row_distance(student, teacher, form, keep), expected)


def plain(query, key, mask, scale):
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    return (query @ key.mT * scale).masked_fill(~mask, float("-inf")).softmax(-1)


def test_logits_are_those_of_causal_grouped_attention():
    query, key = torch.randn(2, 4, 6, 8), torch.randn(2, 2, 6, 8)
    causal = torch.ones(6, 6).tril().bool()
    rows = torch.tensor([1, 3, 5])
    expected = plain(query, key, causal, 0.3)[:, :, rows]
    found = row_logits(query, key, rows, None, 0.3).softmax(-1)
    assert torch.allclose(found, expected, atol=1e-6)
    masked = causal & (torch.arange(6) >= 2)
    masked = masked[None, None].expand(2, 1, 6, 6)
    expected = plain(query, key, masked, 0.3)[:, :, rows[1:]]
    found = row_logits(query, key, rows[1:], masked, 0.3).softmax(-1)
    assert torch.allclose(found, expected, atol=1e-6)


def test_rows_are_sampled_without_the_first_and_from_the_seed():
    assert sample_rows(9, 64, 0).tolist() == list(range(1, 9))
    some = sample_rows(200, 16, 3)
    assert len(set(some.tolist())) == 16
    assert some.min() >= 1
    assert torch.equal(some, sample_rows(200, 16, 3))
    assert not torch.equal(some, sample_rows(200, 16, 4))


def test_logits_of_bf16_are_summed_in_float32():
    query, key = torch.randn(1, 4, 9, 16).bfloat16(), torch.randn(1, 2, 9, 16).bfloat16()
    rows = torch.tensor([3, 8])
    found = row_logits(query, key, rows, None, 0.3)
    assert torch.equal(found, row_logits(query.float(), key.float(), rows, None, 0.3))
