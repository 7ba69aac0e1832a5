"""Speed of engines, measured side by side: every repetition runs every test on every engine in
turn, so that what the machine does meanwhile hits all of them.

Tests: pp128 appends 128 tokens at once to an empty sequence, tg64 appends 64 one by one, tg64@d1984
the same behind 1984 tokens. tokens_per_second is the mean over repetitions of tokens / seconds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

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


class Contender(Protocol):
    """One engine that has its model open; `facts` go into its rows."""

    name: str
    facts: dict[str, Any]
    weight_bytes: int  # of the matrices that one decoding step reads

    def run(self, test: Test) -> float:
        """Seconds that the timed part of a test took."""

    def peak_rss(self) -> int:
        """Bytes of memory its process has held at most."""


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
    seconds: dict[tuple[str, str], list[float]] = {}
    reads: list[float] = []
    for repetition in range(repeat + 1):
        for test in tests:
            for contender in contenders:
                step(contender.name, test.name)
                time.sleep(_PAUSE)
                taken = contender.run(test)
                if repetition:
                    seconds.setdefault((contender.name, test.name), []).append(taken)
        if repetition and read_speed is not None:
            reads.append(read_speed())
    read = statistics.mean(reads) if reads else None
    return [
        _row(contender, test, seconds[contender.name, test.name], read)
        for test in tests
        for contender in contenders
    ]


def _row(
    contender: Contender, test: Test, seconds: list[float], read: float | None
) -> dict[str, Any]:
    speeds = [test.count / taken for taken in seconds]
    mean = statistics.mean(speeds)
    share = contender.weight_bytes * mean / read if read and test.tokens else None
    return {
        "engine": contender.name,
        "test": test.name,
        "tokens_per_second": {
            "mean": mean,
            "sd": statistics.stdev(speeds) if len(speeds) > 1 else 0.0,
        },
        "milliseconds_per_token": 1e3 / mean,
        "first_token_milliseconds": 1e3 * statistics.mean(seconds) if test.prompt else None,
        "peak_rss_bytes": contender.peak_rss(),
        "weight_bytes": contender.weight_bytes,
        "read_bytes_per_second": read,
        "read_share": share,
        **contender.facts,
    }
