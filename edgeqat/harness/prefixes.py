"""Shared prefixes: sequences to score, in batches that compute what several of them begin with
once.

Sorted by their tokens, sequences with a common beginning are neighbours. A group of them is its
prefix, computed once into a cache, and a rest for each member. Prefixes of one batch have the same
length, so that nothing is padded in front of a token; rests are padded behind.

Legend: P prefixes, M members, L tokens of a prefix, S tokens of the longest rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edgeqat.runtime.sequence import shared_length

Ids = Sequence[int]


@dataclass(frozen=True)
class Batch:
    """Prefixes (P, L) and the members: which request each one is, whose prefix it has, its rest."""

    prefixes: list[Ids]
    requests: list[int]
    owners: list[int]
    rests: list[Ids]


def batches(inputs: Sequence[Ids], size: int, tokens: int, share: bool = True) -> Iterator[Batch]:
    """Batches of at most `size` members and about `tokens` tokens; without `share` every sequence
    is alone and has no prefix.
    """
    groups = _groups(inputs, size) if share else (([n], 0) for n in range(len(inputs)))
    by_length: dict[int, list[list[int]]] = {}
    for members, length in groups:
        by_length.setdefault(length, []).append(members)
    for length in sorted(by_length, reverse=True):
        longest = {group[0]: max(len(inputs[n]) for n in group) for group in by_length[length]}
        part: list[list[int]] = []
        room = 0
        for members in sorted(by_length[length], key=lambda group: -longest[group[0]]):
            if part and len(members) > room:
                yield _batch(inputs, part, length)
                part = []
            if not part:
                room = max(1, min(size, tokens // longest[members[0]]))
            part.append(members)
            room -= len(members)
        if part:
            yield _batch(inputs, part, length)


def _groups(inputs: Sequence[Ids], size: int) -> Iterator[tuple[list[int], int]]:
    """Up to `size` members and the length of their prefix: at least half of the longest of them; a
    sequence alone has none.
    """
    members: list[int] = []
    length = longest = 0
    for number in sorted(range(len(inputs)), key=lambda n: tuple(inputs[n])):
        tokens = inputs[number]
        if 0 < len(members) < size:
            shared = min(length, shared_length(inputs[members[0]], tokens))
            if shared and 2 * shared >= max(longest, len(tokens)):
                members.append(number)
                length, longest = shared, max(longest, len(tokens))
                continue
        if members:
            yield members, length if len(members) > 1 else 0
        members, length, longest = [number], len(tokens), len(tokens)
    if members:
        yield members, length if len(members) > 1 else 0


def _batch(inputs: Sequence[Ids], groups: list[list[int]], length: int) -> Batch:
    prefixes = [inputs[members[0]][:length] for members in groups]
    requests = [number for members in groups for number in members]
    owners = [owner for owner, members in enumerate(groups) for _ in members]
    return Batch(prefixes, requests, owners, [inputs[number][length:] for number in requests])
