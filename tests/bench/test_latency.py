"""Rows of `edgeqat bench`: names of tests, order of runs, means, shares."""

from __future__ import annotations

import pytest

from edgeqat.bench import latency
from edgeqat.bench.latency import Test as Timed
from edgeqat.errors import EdgeQATError


@pytest.fixture(autouse=True)
def _no_rest(monkeypatch):
    monkeypatch.setattr(latency, "_PAUSE", 0)


class Clock:
    """A contender that takes the given seconds, or raises, one after the other."""

    weight_bytes = 1000

    def __init__(self, name, seconds, calls):
        self.facts = {"isa": "none"}
        self.name, self.seconds, self.calls = name, iter(seconds), calls

    def run(self, test):
        self.calls.append((self.name, test.name))
        taken = next(self.seconds)
        if isinstance(taken, Exception):
            raise taken
        return latency.Taken(taken, 2 * taken)

    def reopen(self):
        return False

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
    assert rows[0]["processor_milliseconds_per_token"] == pytest.approx(1e3 * 3 / 8)
    assert rows[0]["read_share"] == pytest.approx(0.5)  # 6 times 1000 bytes of 12,000
    assert rows[0]["first_token_milliseconds"] is None
    assert rows[0]["peak_rss_bytes"] == 77
    assert rows[1]["tokens_per_second"] == {"mean": 2.0, "sd": 0.0}


def test_a_prompt_has_a_first_token_and_no_share():
    (row,) = latency.measure([Clock("a", [9, 0.5], [])], [Timed(prompt=128)], 1, lambda: 1e9)
    assert row["first_token_milliseconds"] == 500
    assert row["tokens_per_second"] == {"mean": 256.0, "sd": 0.0}
    assert row["read_share"] is None


BROKEN = EdgeQATError("it broke")
DEAD = latency.Died("its process died of signal 11 (Segmentation fault)")


@pytest.mark.parametrize(
    ("seconds", "reason"),
    [([DEAD], str(DEAD)), ([9, 1, 1, BROKEN], "it broke"), ([9, 1, DEAD], str(DEAD))],
    ids=["first run", "later run", "dead"],
)
def test_an_engine_that_fails_costs_its_own_rows(seconds, reason):
    calls: list = []
    pair = [Clock("a", seconds, calls), Clock("b", [9, 9, 4, 4, 4, 4], calls)]
    rows = latency.measure(pair, [Timed(tokens=8), Timed(prompt=8)], 2)
    assert [(row["engine"], row["test"]) for row in rows] == [
        ("a", "tg8"), ("b", "tg8"), ("a", "pp8"), ("b", "pp8")
    ]  # fmt: skip
    for row in rows[::2]:
        assert row == {"engine": "a", "test": row["test"], "error": reason, "isa": "none"}
    assert [row["tokens_per_second"]["mean"] for row in rows[1::2]] == [2, 2]
    assert [name for name, _ in calls].count("a") == len(seconds)  # it is asked no further


def test_engines_that_were_not_opened_have_rows_that_say_why():
    rows = latency.measure([latency.Unopened("a", "no room")], [Timed(tokens=8)], 3, lambda: 1e9)
    assert rows == [{"engine": "a", "test": "tg8", "error": "no room"}]


class Phoenix(Clock):
    """It can be opened again once."""

    def reopen(self):
        self.facts["isa"], first = "safe", self.facts["isa"] == "none"
        return first


@pytest.mark.parametrize(
    "seconds",
    [
        [DEAD, 9, 4, 4, 4, 4],
        [9, DEAD, 4, 4, 4, 4],
        [9, 9, 2, 2, DEAD, 9, 4, 4, 4, 4],
    ],
    ids=["first run", "second test", "last repetition"],
)
def test_an_engine_opened_again_starts_its_repetitions_again(seconds):
    calls: list = []
    pair = [Phoenix("a", seconds, calls), Clock("b", [9] * 6, calls)]
    rows = latency.measure(pair, [Timed(tokens=8), Timed(prompt=8)], 2)
    own = [row for row in rows if row["engine"] == "a"]
    assert [(row["tokens_per_second"]["mean"], row["isa"]) for row in own] == [(2.0, "safe")] * 2
    assert [name for name, _ in calls].count("a") == len(seconds)
    assert [name for name, _ in calls].count("b") == 6


def test_an_engine_that_dies_again_has_failed():
    rows = latency.measure([Phoenix("a", [DEAD, DEAD], [])], [Timed(tokens=8), Timed(prompt=8)], 2)
    assert [row["error"] for row in rows] == [str(DEAD)] * 2
