"""Perplexity, KL and top tokens against float logits in a file."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tiny
import torch

from edgeqat.compare.scores import Scores, scored, write_reference
from edgeqat.data.text import Blocks
from edgeqat.evaluate.perplexity import perplexity


def test_a_block_of_two_predictions_by_hand(tmp_path):
    """Two tokens, two predictions: p = (1/2, 1/2) and (3/4, 1/4); q = (1/4, 3/4) in both."""
    floating = torch.tensor([[0.5, 0.5], [0.75, 0.25]]).log()
    np.save(tmp_path / "reference.npy", floating[None].numpy())
    scores = Scores(tmp_path / "reference.npy")
    logits = torch.tensor([0.25, 0.75]).log().expand(3, 2)
    scores.add(torch.tensor([0, 1, 0]), logits)
    found = scores.result()
    first = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    second = 0.75 * math.log(0.75 / 0.25) + 0.25 * math.log(0.25 / 0.75)
    assert found["kl"] == pytest.approx((first + second) / 2, rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(-math.log(0.75 * 0.25) / 2), rel=1e-5)
    assert found["same_top"] == 0.0  # a tie counts for its first token


def test_the_float_model_is_at_no_distance_from_itself(tmp_path):
    model, ids = tiny.llama(), tiny.ids(3, 24)
    written = write_reference(tmp_path / "reference.npy", model, ids)
    found = scored(model, ids, tmp_path / "reference.npy")
    assert found["kl"] == pytest.approx(0, abs=1e-6)
    assert found["same_top"] == written["same_top"] == 100
    expected = perplexity(model, Blocks(ids))
    assert found["perplexity"] == pytest.approx(expected, rel=1e-5)
    assert written["perplexity"] == pytest.approx(expected, rel=1e-5)


def test_another_model_is_far(tmp_path):
    ids = tiny.ids(2, 24)
    write_reference(tmp_path / "reference.npy", tiny.llama(), ids)
    found = scored(tiny.llama(seed=1), ids, tmp_path / "reference.npy")
    assert found["kl"] > 0.1 and found["kl_p99"] > found["kl"] and found["same_top"] < 50
