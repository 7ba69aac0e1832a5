"""Mixed widths within a size."""

from __future__ import annotations

from itertools import product

import pytest

from edgeqat.errors import RecipeError
from edgeqat.quant.allocation import Choice, allocate


def choices(weight: float, size: int = 100) -> list[Choice]:
    return [Choice(bits, bits * size, weight * 4.0**-bits) for bits in (2, 3, 4, 6, 8)]


def test_the_layer_that_loses_more_gets_more_bits():
    taken = allocate({"soft": choices(1.0), "hard": choices(1000.0)}, 1000, 8)
    assert taken["hard"].bits > taken["soft"].bits
    assert sum(choice.bytes for choice in taken.values()) <= 1000


def test_a_hand_computed_budget():
    # 4 + 4 bits fit, the next step of either does not
    taken = allocate({"a": choices(1.0), "b": choices(1.0)}, 850, 8)
    assert sorted(choice.bits for choice in taken.values()) == [4, 4]


@pytest.mark.parametrize("budget", [700, 1000, 1300, 1900])
def test_it_is_near_the_best_there_is(budget):
    layers = {"a": choices(3.0, 100), "b": choices(50.0, 60), "c": choices(0.2, 150)}
    taken = allocate(layers, budget, 8)
    loss = sum(choice.loss for choice in taken.values())
    fitting = (c for c in product(*layers.values()) if sum(x.bytes for x in c) <= budget)
    best = min(sum(x.loss for x in c) for c in fitting)
    assert best <= loss <= 4 * best


def test_a_width_that_loses_more_than_a_narrower_one_is_never_taken():
    layers = {"a": [Choice(2, 10, 1.0), Choice(3, 20, 2.0), Choice(4, 30, 0.5)]}
    assert allocate(layers, 25, 8)["a"].bits == 2
    assert allocate(layers, 30, 8)["a"].bits == 4


def test_a_size_that_cannot_be_reached_is_refused():
    with pytest.raises(RecipeError, match="average_bits: 100 is less than the 400"):
        allocate({"a": choices(1.0), "b": choices(1.0)}, 100, 8)
