"""Rows of `edgeqat bench`: names of tests, order of runs, means, shares."""

from __future__ import annotations

import pytest

from edgeqat.evaluate import latency
from edgeqat.evaluate.latency import Test as Timed


@pytest.fixture(autouse=True)
def _no_rest(monkeypatch):
    monkeypatch.setattr(latency, "_PAUSE", 0)


class Clock:
    """A contender that takes the given seconds, one after the other."""

    weight_bytes = 1000

    def __init__(self, name, seconds, calls):
        self.facts = {"isa": "none"}
        self.name, self.seconds, self.calls = name, iter(seconds), calls

    def run(self, test):
        self.calls.append((self.name, test.name))
        return next(self.seconds)

    def peak_rss(self):
        return 77


def test_names_are_those_of_the_design():
    assert [test.name for test in latency.default_tests()] == [
        "pp128",
        "pp512",
        "tg64",
        "tg64@d1984",
    ]
    assert Timed(tokens=64, depth=1984).context == 2048
    assert Timed(prompt=128).context == Timed(prompt=128).count == 128


def test_engines_take_turns_and_the_first_repetition_does_not_count():
    calls: list = []
    pair = [Clock("a", [9, 1, 2], calls), Clock("b", [9, 4, 4], calls)]
    rows = latency.measure(pair, [Timed(tokens=8)], 2, read_speed=lambda: 12e3)
    assert [name for name, _ in calls] == ["a", "b"] * 3
    assert rows[0]["tokens_per_second"] == {"mean": 6.0, "sd": pytest.approx(8**0.5)}
    assert rows[0]["milliseconds_per_token"] == pytest.approx(1e3 / 6)
    assert rows[0]["read_share"] == pytest.approx(0.5)  # 6 times 1000 bytes of 12,000
    assert rows[0]["first_token_milliseconds"] is None
    assert rows[0]["peak_rss_bytes"] == 77
    assert rows[1]["tokens_per_second"] == {"mean": 2.0, "sd": 0.0}


def test_a_prompt_has_a_first_token_and_no_share():
    (row,) = latency.measure([Clock("a", [9, 0.5], [])], [Timed(prompt=128)], 1, lambda: 1e9)
    assert row["first_token_milliseconds"] == 500
    assert row["tokens_per_second"] == {"mean": 256.0, "sd": 0.0}
    assert row["read_share"] is None
