"""Shared prefixes: which sequences are computed together."""

from __future__ import annotations

import random

from edgeqat.harness.prefixes import batches
from edgeqat.runtime.sequence import shared_length


def whole(batch, row):
    return [*batch.prefixes[batch.owners[row]], *batch.rests[row]]


def test_common_counts_what_is_alike():
    assert shared_length([1, 2, 3], [1, 2, 4, 5]) == 2
    assert shared_length([1, 2], [1, 2, 3]) == 2
    assert shared_length([], [1]) == 0


def test_a_pair_that_begins_alike_shares_its_prefix():
    inputs = [[1, 5, 6, 7], [9, 9], [1, 5, 6, 8, 2]]
    found = list(batches(inputs, 8, 1000))
    assert [batch.prefixes for batch in found] == [[[1, 5, 6]], [[]]]
    assert found[0].requests == [0, 2]
    assert found[0].rests == [[7], [8, 2]]
    assert found[1].rests == [[9, 9]]


def test_a_short_common_beginning_is_not_worth_a_cache():
    assert [len(b.prefixes[0]) for b in batches([[1, 5, 6, 7, 8], [1, 9, 9, 9, 9]], 8, 99)] == [0]


def test_equal_sequences_are_computed_once():
    (batch,) = batches([[1, 2, 3], [1, 2, 3], [1, 2, 3]], 8, 1000)
    assert batch.prefixes == [[1, 2, 3]]
    assert batch.owners == [0, 0, 0]
    assert batch.rests == [[], [], []]


def test_every_sequence_is_in_one_batch_of_the_wanted_size():
    choose = random.Random(0)
    inputs = [[choose.randint(0, 2) for _ in range(choose.randint(1, 9))] for _ in range(200)]
    for share in (True, False):
        found = list(batches(inputs, 16, 60, share))
        rows = [(r, whole(b, n)) for b in found for n, r in enumerate(b.requests)]
        assert sorted(rows) == sorted(enumerate(inputs))
        assert max(len(b.requests) for b in found) <= 16
        for batch in found:
            assert len({len(prefix) for prefix in batch.prefixes}) == 1
            if len(batch.prefixes) > 1:  # one group alone may be larger
                assert len(batch.requests) * max(len(whole(batch, 0)), 1) <= 60 + 16 * 9
    assert all(batch.prefixes[0] == [] for batch in batches(inputs, 16, 60, share=False))
