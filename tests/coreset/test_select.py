"""Selecting a coreset: the top share, balance, random parts, and what is refused."""

import pytest
import torch

from edgeqat.coreset.select import overlap, select
from edgeqat.errors import UsageError


def test_the_highest_scores_are_kept_in_order():
    scores = torch.tensor([0.1, 0.9, 0.5, 0.7])
    assert select(scores, 0.5).tolist() == [1, 3]
    assert select(scores, 1.0).tolist() == [0, 1, 2, 3]
    assert select(scores, 0.001).tolist() == [1]


def test_balance_gives_every_class_its_part():
    torch.manual_seed(0)
    scores, labels = torch.rand(1000), torch.randint(10, (1000,))
    labels[:5] = 10  # a class with fewer samples than its part
    chosen = select(scores, 0.2, labels)
    counts = torch.bincount(labels[chosen])
    assert len(chosen) == 200 and counts[10] == 5
    assert counts[:10].max() - counts[:10].min() <= 1
    for label in range(10):
        own = scores[labels == label]
        kept = scores[chosen[labels[chosen] == label]]
        assert torch.equal(kept.sort().values, own.sort().values[-len(kept) :])


def test_a_random_part_is_drawn_from_the_rest():
    scores = torch.arange(100.0)
    chosen = select(scores, 0.2, random_share=0.5, seed=1)
    assert len(chosen.unique()) == 20 and set(range(90, 100)) <= set(chosen.tolist())
    assert torch.equal(chosen, select(scores, 0.2, random_share=0.5, seed=1))
    assert not torch.equal(chosen, select(scores, 0.2, random_share=0.5, seed=2))
    assert overlap(chosen, select(scores, 0.1)) == 0.5


@pytest.mark.parametrize("share", [0, -0.1, 1.5, float("nan")])
def test_shares_outside_zero_to_one_are_refused(share):
    with pytest.raises(UsageError, match=r"coreset: .* is outside \(0, 1\]"):
        select(torch.rand(10), share)


def test_fewer_places_than_classes_are_refused():
    with pytest.raises(UsageError, match="5 samples chosen by score cannot cover 100 classes"):
        select(torch.rand(500), 0.01, torch.arange(500) % 100)


def test_scores_that_are_not_finite_are_refused():
    with pytest.raises(UsageError, match="not finite"):
        select(torch.tensor([1.0, float("nan")]), 0.5)


def test_equal_scores_are_drawn_from_all_of_the_data():
    scores = torch.zeros(1000)
    scores[:900] = 1.0
    chosen = select(scores, 0.1, seed=1)
    assert (chosen < 900).all() and 350 < chosen.float().mean() < 550
    assert not torch.equal(chosen, select(scores, 0.1, seed=2))
