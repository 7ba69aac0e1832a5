"""What our engine saves where work is shared: four sequences that read the weights together, and
the summary of a text, of which prompt lookup guesses tokens.

Tests: tg64x4 appends 64 tokens one by one to each of four sequences at once; summary writes at most
128 tokens, greedy, behind a text of some 300, timed from the first one on; summary-lookup writes
the same ones with lookup.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from edgeqat import checkpoint
from edgeqat.bench import latency
from edgeqat.bench.sequence import process_peak
from edgeqat.errors import EdgeQATError
from edgeqat.native_tokenizer import NativeChat, NativeTokenizer
from edgeqat.runtime.batch import Batch, Part
from edgeqat.runtime.engine import Engine

SEQUENCES, SUMMARY_TOKENS = 4, 128
_STRIDE = 7919
STORY = """\
The lighthouse on the northern point was built in 1874, after three ships had been lost on the reef
in one winter. Its first keeper was Anna Lindqvist, who lived there with her two sons and a grey dog
for thirty-one years. Every evening she climbed the two hundred and six steps, trimmed the lamp, and
wrote the weather into a book. On clear nights the light could be seen from a distance of eighteen
miles. In the great storm of 1889 the lamp went out, because water had come through the roof. Anna
Lindqvist carried the second lamp up the stairs, held it in the window until morning, and so saved a
steamer with ninety people on board. The owners of the steamer gave her a silver watch. She never
wore it, because she said that a keeper has a lamp and needs no watch. Her elder son became keeper
after her. He kept the book of the weather going until 1931, when the light was made to work by
electricity and the last keeper left. The book, with more than twenty thousand evenings in it, is in
the museum of the town now. Scientists use it to learn how storms on that coast have changed."""


def run(folder: Path, threads: int, repeat: int) -> list[dict[str, Any]]:
    """Rows as latency.measure gives them; none of the summary where the folder has no tokenizer or
    its context is too short.
    """
    with Engine(folder, threads) as engine:
        works: dict[str, Callable[[], float]] = {}
        batch = Batch(engine, SEQUENCES) if engine.context >= latency.NEW_TOKENS else None
        if batch is not None:
            works[f"tg{latency.NEW_TOKENS}x{SEQUENCES}"] = partial(_decode, batch)
        prompt = _prompt(folder)
        if prompt and len(prompt) + SUMMARY_TOKENS <= engine.context:
            works["summary"] = partial(_summarize, engine, prompt, False)
            works["summary-lookup"] = partial(_summarize, engine, prompt, True)
        speeds: dict[str, list[float]] = {name: [] for name in works}
        for turn in range(repeat + 1):  # the first one warms up
            for name, work in works.items():
                rate = work()
                if turn and rate:
                    speeds[name].append(rate)
        if batch is not None:
            batch.close()
        size = (folder / checkpoint.WEIGHTS).stat().st_size
        facts = {"isa": engine.isa, "weight_bytes": engine.matrix_bytes, "file_bytes": size}
        return [_row(name, rates, facts) for name, rates in speeds.items() if rates]


def _decode(batch: Batch) -> float:
    """Tokens a second of all sequences."""
    for slot in batch.slots:
        slot.rewind(0)
    start = time.perf_counter()
    for step in range(latency.NEW_TOKENS):
        ids = [step * _STRIDE % batch.vocabulary]
        batch.forward([Part(slot, ids) for slot in batch.slots])
    return latency.NEW_TOKENS * len(batch.slots) / (time.perf_counter() - start)


def _summarize(engine: Engine, prompt: list[int], lookup: bool) -> float:
    """Tokens a second behind the first one; 0 where there is none."""
    engine.reset()
    tokens = engine.generate(prompt, SUMMARY_TOKENS, lookup=lookup)
    if next(tokens, None) is None:
        return 0.0
    start = time.perf_counter()
    count = sum(1 for _ in tokens)
    return count / (time.perf_counter() - start)


def _prompt(folder: Path) -> list[int]:
    task = f"Summarize this text in three sentences.\n\n{STORY}"
    try:
        tokenizer = NativeTokenizer(folder)
    except EdgeQATError:
        return []
    try:
        text = NativeChat(folder).apply([{"role": "user", "content": task}], True)
    except EdgeQATError:  # no chat model
        return tokenizer.encode(task)
    return tokenizer.encode(text, special=False)


def _row(name: str, rates: list[float], facts: dict[str, Any]) -> dict[str, Any]:
    speed = latency.mean_and_sd(rates)
    return {
        "engine": "native",
        "test": name,
        "tokens_per_second": speed,
        "milliseconds_per_token": 1e3 / speed["mean"],
        "first_token_milliseconds": None,
        "peak_rss_bytes": process_peak(),
        "read_bytes_per_second": None,
        "read_share": None,
        **facts,
    }
