"""Perplexity of models whose answer is known, and the recovered share."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import tiny
import torch
from torch import nn

from edgeqat.data.text import Blocks
from edgeqat.evaluate.perplexity import conditions, perplexity, recovered
from edgeqat.recipe.data import DataSection


class Bigram(nn.Module):
    """Predicts the next token from the last one by a table of logits (V, V)."""

    def __init__(self, table):
        super().__init__()
        self.table = nn.Parameter(table)
        self.config = SimpleNamespace(vocab_size=len(table))
        self.calls = 0

    def forward(self, input_ids, use_cache):
        assert not self.training
        assert not use_cache
        self.calls += 1
        return SimpleNamespace(logits=self.table[input_ids])


def test_a_uniform_model_is_as_perplexed_as_its_vocabulary():
    model = Bigram(torch.zeros(17, 17))
    assert perplexity(model, Blocks(torch.randint(17, (5, 8)))) == pytest.approx(17)


def test_two_rows_of_three_by_hand():
    probability = torch.tensor([[0.5, 0.25, 0.25], [0.2, 0.2, 0.6], [0.1, 0.8, 0.1]])
    blocks = Blocks(torch.tensor([[0, 0, 1], [1, 2, 1]]))
    # p(0|0) p(1|0) p(2|1) p(1|2): the first token of a block is context only
    product = 0.5 * 0.25 * 0.6 * 0.8
    assert perplexity(Bigram(probability.log()), blocks) == pytest.approx(product ** (-1 / 4))


def test_a_model_that_knows_the_text_has_perplexity_one():
    table = torch.full((10, 10), -100.0)
    table[torch.arange(10), (torch.arange(10) + 1) % 10] = 100.0
    assert perplexity(Bigram(table), Blocks(torch.arange(10)[None])) == pytest.approx(1)


def test_it_is_the_loss_of_transformers_and_does_not_depend_on_batching(monkeypatch):
    model, ids = tiny.llama(), tiny.ids(6, 16)
    losses = [model(input_ids=row[None], labels=row[None]).loss.item() for row in ids]
    found = perplexity(model, Blocks(ids))
    assert found == pytest.approx(math.exp(sum(losses) / 6), rel=1e-5)
    monkeypatch.setattr("edgeqat.evaluate.perplexity._LOGITS_AT_ONCE", 16 * tiny.VOCABULARY)
    assert perplexity(model, Blocks(ids)) == pytest.approx(found, rel=1e-6)


def test_the_mode_of_the_model_is_kept():
    for training in (True, False):
        model = Bigram(torch.zeros(5, 5)).train(training)
        perplexity(model, Blocks(torch.zeros(1, 4, dtype=torch.int64)))
        assert model.training == training


def test_conditions_say_what_the_number_depends_on():
    data = DataSection(context=16, bos=True)
    found = conditions(data, Blocks(torch.zeros(5, 16, dtype=torch.int64)))
    expected = {"context": 16, "stride": 16, "bos": True, "blocks": 5, "tokens": 75}
    assert found == expected


def test_recovered_is_a_share_of_the_log_gap():
    assert recovered(10, 20, 20) == 0
    assert recovered(10, 20, 10) == pytest.approx(1)
    assert recovered(10, 40, 20) == pytest.approx(0.5)
    assert recovered(10, 20, 5) == pytest.approx(2)
    assert recovered(10, 20, 40) == pytest.approx(-1)


def test_nothing_is_recovered_where_nothing_was_lost():
    assert recovered(10, 10, 9) is None
    assert recovered(10, 9, 8) is None
