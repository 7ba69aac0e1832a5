"""Batches of prompts continued: the sampling loop beside generate()."""

from __future__ import annotations

import pytest
import tiny
import torch

from edgeqat.hf import continuation
from edgeqat.hf.continuation import continued, sampled

ROWS = [tiny.ids(1, length, seed=length)[0].tolist() for length in (3, 9, 5, 12)]


@pytest.fixture(scope="module")
def model():
    return tiny.llama()


@pytest.mark.parametrize("count", [0, 3])
def test_the_most_probable_token_alone_is_what_generate_takes(model, count):
    """Prompts of unequal lengths; with `count` ends rows stop, and are dropped, one by one."""
    free = continued(model, ROWS, [], 20, do_sample=False)
    ends = sorted({row[5 + 3 * number] for number, row in enumerate(free[:count])})
    expected = continued(model, ROWS, ends, 20, do_sample=False)
    assert sampled(model, ROWS, ends, 20, 1e-9) == expected
    assert (len({len(row) for row in expected}) > 1) is (count > 0)


def test_tokens_come_from_the_nucleus_as_often_as_they_are_probable(model, monkeypatch):
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log().expand(20_000, 4)
    torch.manual_seed(0)
    drawn = continuation._drawn(logits, 0.9)[:, 0].bincount(minlength=4) / len(logits)
    expected = torch.tensor([0.5, 0.3, 0.15, 0.0]) / 0.95  # the third one reaches 0.9
    assert torch.allclose(drawn, expected, atol=0.015)
    monkeypatch.setattr(continuation, "_CANDIDATES", 2)
    assert set(continuation._drawn(logits, 1.0)[:, 0].tolist()) == {0, 1}
