"""Speed of engines, measured side by side: every repetition runs every test on every engine in
turn, so that what the machine does meanwhile hits all of them.

Tests: pp128 appends 128 tokens at once to an empty sequence, tg64 appends 64 one by one, tg64@d1984
the same behind 1984 tokens. tokens_per_second is the mean over repetitions of tokens / seconds;
seconds of processors count all threads, what they spend waiting for each other included.

An engine that fails is asked no further: its rows have an "error" in the place of speeds. One that
can be opened in a safer way after its process died starts its repetitions again.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from edgeqat.errors import EdgeQATError

PROMPTS, NEW_TOKENS, DEPTHS = (128, 512), 64, (0, 1984)
_PAUSE = 0.5  # seconds: threads of the engine before stop spinning


@dataclass(frozen=True)
class Test:
    """`prompt` tokens at once (pp), or `tokens` one by one (tg), behind `depth` others."""

    prompt: int = 0
    tokens: int = 0
    depth: int = 0

    @property
    def name(self) -> str:
        kind = f"pp{self.prompt}" if self.prompt else f"tg{self.tokens}"
        return f"{kind}@d{self.depth}" if self.depth else kind

    @property
    def count(self) -> int:
        """Tokens that are timed."""
        return self.prompt or self.tokens

    @property
    def context(self) -> int:
        """Tokens the sequence must hold."""
        return self.depth + self.count


def default_tests(depths: Iterable[int] = DEPTHS) -> list[Test]:
    """Prefill of an empty sequence, and decoding at every depth."""
    return [
        *(Test(prompt=count) for count in PROMPTS),
        *(Test(tokens=NEW_TOKENS, depth=depth) for depth in depths),
    ]


class Taken(NamedTuple):
    """Seconds of the timed part of a test: on the clock, and of processors (None: not known)."""

    seconds: float
    processors: float | None = None


class Contender(Protocol):
    """One engine that has its model open; `facts` go into its rows."""

    name: str
    facts: dict[str, Any]
    weight_bytes: int  # of the matrices that one decoding step reads

    def run(self, test: Test) -> Taken:
        """What the timed part of a test took; EdgeQATError where it fails, Died where its
        process ended.
        """

    def reopen(self) -> bool:
        """Open it again in a safer way, after it died; False where there is none (any more)."""

    def peak_rss(self) -> int:
        """Bytes of memory its process has held at most."""


class Died(EdgeQATError):
    """The process of an engine ended, or gave no answer."""


@dataclass
class Unopened:
    """The place of an engine that could not be opened."""

    name: str
    reason: str
    facts: dict[str, Any] = field(default_factory=dict)
    weight_bytes: int = 0

    def run(self, test: Test) -> Taken:
        raise EdgeQATError(self.reason)

    def reopen(self) -> bool:
        return False

    def peak_rss(self) -> int:
        return 0


class _Entry:
    """A contender and how far it is: rounds of all tests, of which the first warms up."""

    def __init__(self, contender: Contender) -> None:
        self.contender, self.rounds = contender, 0
        self.taken: dict[str, list[Taken]] = {}
        self.error: str | None = None

    def run(self, test: Test) -> None:
        try:
            taken = self.contender.run(test)
        except Died as error:
            self._go_on(error)
        except EdgeQATError as error:
            self.error = str(error)
        else:
            if self.rounds:
                self.taken.setdefault(test.name, []).append(taken)

    def _go_on(self, died: Died) -> None:
        try:
            again = self.contender.reopen()
        except EdgeQATError as error:
            self.error = str(error)
            return
        if not again:
            self.error = str(died)
        self.rounds, self.taken = 0, {}


def measure(
    contenders: list[Contender],
    tests: list[Test],
    repeat: int,
    read_speed: Callable[[], float] | None = None,
    step: Callable[[str, str], None] = lambda engine, test: None,
) -> list[dict[str, Any]]:
    """Rows of every test and engine; one repetition before the `repeat` counted ones warms up.

    read_speed: bytes a second of a plain read loop, measured once a repetition; decoding rows say
    which share of it their matrices reach. step(engine, test) is called before each run.
    """
    entries = [_Entry(contender) for contender in contenders]
    reads: list[float] = []
    while running := [entry for entry in entries if entry.error is None and entry.rounds <= repeat]:
        for test in tests:
            for entry in running:
                if entry.error is None:
                    step(entry.contender.name, test.name)
                    time.sleep(_PAUSE)
                    entry.run(test)
        if read_speed is not None and any(entry.rounds for entry in running):
            reads.append(read_speed())
        for entry in running:
            entry.rounds += 1
    read = statistics.mean(reads) if reads else None
    return [_row(entry, test, read) for test in tests for entry in entries]


def mean_and_sd(values: list[float]) -> dict[str, float]:
    """Mean and standard deviation of repetitions; of a single one the latter is 0."""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.mean(values), "sd": spread}


def _row(entry: _Entry, test: Test, read: float | None) -> dict[str, Any]:
    contender = entry.contender
    if entry.error is not None:
        named = {"engine": contender.name, "test": test.name, "error": entry.error}
        return {**named, **contender.facts}
    runs = entry.taken[test.name]
    seconds = [taken.seconds for taken in runs]
    processors = [taken.processors for taken in runs if taken.processors is not None]
    speeds = [test.count / taken for taken in seconds]
    speed = mean_and_sd(speeds)
    share = contender.weight_bytes * speed["mean"] / read if read and test.tokens else None
    return {
        "engine": contender.name,
        "test": test.name,
        "tokens_per_second": speed,
        "milliseconds_per_token": 1e3 / speed["mean"],
        "processor_milliseconds_per_token": (
            1e3 * statistics.mean(processors) / test.count if processors else None
        ),
        "first_token_milliseconds": 1e3 * statistics.mean(seconds) if test.prompt else None,
        "peak_rss_bytes": contender.peak_rss(),
        "weight_bytes": contender.weight_bytes,
        "read_bytes_per_second": read,
        "read_share": share,
        **contender.facts,
    }
