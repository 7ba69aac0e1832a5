"""Entropy guidance against numbers computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from edgeqat.losses.entropy import entropy, entropy_gap, paper_entropy, variance

# One sequence, two heads, two tokens of three: variances 1 and 4 over all six values.
TWO_HEADS = torch.tensor([[[1.0, -1, 1], [-1, 1, -1]], [[2.0, -2, 2], [-2, 2, -2]]])[None]


def test_variance_is_per_head_over_tokens_and_head_dim():
    assert variance(TWO_HEADS).tolist() == [[1.0, 4.0]]
    assert variance(TWO_HEADS + 7).tolist() == [[1.0, 4.0]]


def test_padding_does_not_count():
    padded = torch.cat([torch.full((1, 2, 3, 3), 99.0), TWO_HEADS], dim=2)
    keep = torch.tensor([[False] * 3 + [True] * 2])
    assert variance(padded, keep).tolist() == [[1.0, 4.0]]
    alone = torch.ones(1, 2, dtype=torch.bool)
    assert torch.equal(variance(TWO_HEADS, alone), variance(TWO_HEADS))


def test_entropy_is_that_of_a_gaussian():
    expected = [0.5 * math.log(2 * math.pi * math.e * v) for v in (1.0, 4.0)]
    assert entropy(variance(TWO_HEADS))[0].tolist() == pytest.approx(expected)
    assert entropy(torch.zeros(1)).isfinite().all()


def test_the_gap_is_what_the_student_lacks():
    student, teacher = torch.tensor([[[1.0, 4.0]]]), torch.tensor([[[4.0, 1.0]]])
    assert entropy_gap(student, teacher).item() == pytest.approx(math.log(2) / 2)  # of two heads
    assert entropy_gap(teacher * 9, teacher).item() == 0


def test_the_gap_pulls_only_where_the_student_is_narrower():
    values = TWO_HEADS.clone().requires_grad_()
    entropy_gap(variance(values)[None], torch.tensor([[[2.0, 2.0]]])).backward()
    assert (values.grad[0, 0] * values.detach()[0, 0] < 0).all()  # descending widens
    assert values.grad[0, 1].abs().max() == 0


def test_the_paper_s_form_sums_before_the_logarithm():
    query, key = torch.tensor([[[1.0, 3.0]], [[1.0, 1.0]]]), torch.tensor([[[2.0]], [[1.0]]])
    total = math.log(1 + 2) + math.log(1 + 6) + 2 * math.log(1 + 1)
    assert paper_entropy(query, key).item() == pytest.approx(-math.log(total))


def test_the_paper_s_form_is_the_same_for_a_batch_of_copies():
    query, key = torch.rand(2, 1, 4), torch.rand(2, 1, 2)
    whole = paper_entropy(query.expand(2, 3, 4), key.expand(2, 3, 2))
    assert whole.item() == pytest.approx(paper_entropy(query, key).item())


def test_the_paper_s_form_pairs_query_heads_with_their_key_head():
    query, key = torch.tensor([[[1.0, 2.0, 3.0, 4.0]]]), torch.tensor([[[1.0, 5.0]]])
    total = sum(math.log(1 + q * k) for q, k in [(1, 1), (2, 1), (3, 5), (4, 5)])
    assert paper_entropy(query, key).item() == pytest.approx(-math.log(total))


def test_variances_of_bf16_are_summed_in_float32():
    values = (torch.randn(2, 3, 50, 16) + 5).bfloat16()
    assert torch.equal(variance(values), variance(values.float()))
