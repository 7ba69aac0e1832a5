"""What `edgeqat eval` prints of a suite and of chat."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def lines(result: dict[str, Any]) -> Iterator[str]:
    """The page of a result of pipeline/suite, line by line."""
    told = result["positions"]
    yield (
        f"{result['model']} at {result['scheme']}, {result['backend']}, beside {result['against']}"
    )
    yield ""
    yield _row(f"{told['blocks']} blocks of {told['context']}", "float", "model", "KL", "same top")
    yield _scores("perplexity", told)
    for part in told["positions"]:
        yield _scores(f"  tokens {part['first']} to {part['last']}", part)
    for row in result["needles"]:
        found = [f"{count} of {row['needles']}" for count in row["found"]]
        yield _row(f"needles in {row['tokens']} tokens", *found)
    if result["chat"] is not None:
        yield ""
        yield f"chat, {result['chat']['prompts']} prompts"
        yield from chat(result["chat"])
    if result["tasks"] is not None:
        yield ""
        yield from _tasks(result["tasks"])
    yield ""
    seconds = ", ".join(f"{part} {value:.0f}" for part, value in result["seconds"].items())
    yield f"seconds: {seconds}"


def chat(result: dict[str, Any]) -> Iterator[str]:
    """What evaluate/chat found, in three lines."""
    for name in ("float", "model"):
        habits = result[name]
        yield (
            f"{name}: {100 * habits['ends']:.0f}% end, {100 * habits['loops']:.0f}% loop, "
            f"{habits['tokens']:.0f} tokens on average"
        )
    yield (
        f"same first 32 tokens: {100 * result['same_start']:.0f}%; KL on the float model's "
        f"answers {result['kl']:.4f} nats"
    )


def _row(name: str, *cells: str) -> str:
    widths = (12, 18, 10, 10)
    cut = "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=False))
    return f"{name:<28}{cut}".rstrip()


def _scores(name: str, part: dict[str, float]) -> str:
    more = f"{part['model']:.2f} ({100 * (part['model'] / part['float'] - 1):+.1f}%)"
    share = f"{100 * part['same_top']:.1f}%"
    return _row(name, f"{part['float']:.2f}", more, f"{part['kl']:.4f}", share)


def _tasks(tasks: dict[str, Any]) -> Iterator[str]:
    groups = [tasks[name].get("groups") or tasks[name]["results"] for name in ("float", "model")]
    for name in groups[0]:
        shares = [group[name].get("acc,none") for group in groups]
        if None not in shares:
            yield _row(name, *(f"{100 * share:.1f}%" for share in shares))
