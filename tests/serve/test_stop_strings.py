"""What may be shown of an answer before it is known whether a stop comes."""

from __future__ import annotations

import random

import pytest

from edgeqat.serve.stops import Stops


def shown(stops, pieces):
    made, texts = Stops(stops), []
    for piece in pieces:
        text, stopped = made.feed(piece)
        texts.append(text)
        if stopped:
            return texts, True
    return [*texts, made.flush()], False


@pytest.mark.parametrize(
    ("stops", "pieces", "texts", "stopped"),
    [
        (["END"], ["a E", "N", "D b"], ["a ", "", ""], True),
        (["END"], ["a E", "N", "x"], ["a ", "", "ENx", ""], False),
        (["END"], ["a E", "N"], ["a ", "", "EN"], False),
        (["aab"], ["aa", "a", "b"], ["", "a", ""], True),
        (["abcX", "bc"], ["abc"], ["a"], True),
        (["b", "a"], ["xab"], ["x"], True),
        ([], ["a", "b"], ["a", "b", ""], False),
    ],
)
def test_a_stop_is_held_back_and_cut(stops, pieces, texts, stopped):
    assert shown(stops, pieces) == (texts, stopped)


def test_any_cut_of_a_text_shows_the_same():
    dice = random.Random(0)
    for _ in range(500):
        text = "".join(dice.choices("ab", k=12))
        stops = ["".join(dice.choices("ab", k=dice.randint(2, 5))) for _ in range(2)]
        made = {"".join(shown(stops, list(text))[0])}
        # a stop that begins earlier may end later: pieces of one character are the measure
        for size in (2, 3):
            if len(stops[0]) == len(stops[1]):
                cut = [text[i : i + size] for i in range(0, len(text), size)]
                made.add("".join(shown(stops, cut)[0]))
        assert len(made) == 1
        assert not any(stop in min(made) for stop in stops)
