"""The page that `edgeqat eval --suite` prints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def lines(result: dict[str, Any]) -> Iterator[str]:
    """The page of a result of pipeline/suite, line by line."""
    told = result["positions"]
    yield f"{result['model']} at {result['scheme']} beside {result['against']}"
    yield ""
    yield _row(f"{told['blocks']} blocks of {told['context']}", "float", "model", "KL", "same top")
    yield _scores("perplexity", told)
    for part in told["positions"]:
        yield _scores(f"  tokens {part['first']} to {part['last']}", part)
    for row in result["needles"]:
        found = [f"{count} of {row['needles']}" for count in row["found"]]
        yield _row(f"needles in {row['tokens']} tokens", *found)
    if result["chat"] is not None:
        yield from _chat(result["chat"])
    if result["tasks"] is not None:
        yield from _tasks(result["tasks"])


def _row(name: str, *cells: str) -> str:
    widths = (12, 18, 10, 10)
    cut = "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=False))
    return f"{name:<28}{cut}".rstrip()


def _scores(name: str, part: dict[str, float]) -> str:
    more = f"{part['model']:.2f} ({100 * (part['model'] / part['float'] - 1):+.1f}%)"
    share = f"{100 * part['same_top']:.1f}%"
    return _row(name, f"{part['float']:.2f}", more, f"{part['kl']:.4f}", share)


def _chat(chat: dict[str, Any]) -> Iterator[str]:
    both = chat["float"], chat["model"]
    yield _row(
        f"chat, {chat['prompts']} prompts: end", *(f"{100 * one['ends']:.0f}%" for one in both)
    )
    yield _row("  loop", *(f"{100 * one['loops']:.0f}%" for one in both))
    yield _row("  tokens", *(f"{one['tokens']:.0f}" for one in both))
    yield _row("  same first 32 tokens", "", f"{100 * chat['same_start']:.0f}%")
    yield _row("  KL on the float answers", "", f"{chat['kl']:.4f}")


def _tasks(tasks: dict[str, Any]) -> Iterator[str]:
    groups = [tasks[name].get("groups") or tasks[name]["results"] for name in ("float", "model")]
    for name in groups[0]:
        shares = [group[name].get("acc,none") for group in groups]
        if None not in shares:
            yield _row(name, *(f"{100 * share:.1f}%" for share in shares))
