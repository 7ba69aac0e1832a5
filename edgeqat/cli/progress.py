"""The progress bar of a training run: loss terms, tokens/s and the time left, on stderr."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from edgeqat import log


@contextmanager
def training_progress() -> Iterator[Any]:
    """A listener for training records: a bar per stage on a terminal, else one line per record."""
    if not log.console().is_terminal:
        yield _print_line
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn("{task.description:>5}"),
        BarColumn(bar_width=24),
        TextColumn("{task.completed:>5}/{task.total}"),
        TextColumn("{task.fields[terms]}"),
        TextColumn("{task.fields[speed]:>6.0f} tokens/s"),
        TimeRemainingColumn(),
        console=log.console(),
    )
    tasks: dict[str, Any] = {}

    def listener(record: dict[str, Any]) -> None:
        stage = record["stage"]
        if stage not in tasks:
            tasks[stage] = bar.add_task(stage, total=record["steps"], terms="", speed=0.0)
        terms = "  ".join(f"{name} {value:.4f}" for name, value in record["terms"].items())
        speed = record["tokens_per_second"]
        bar.update(tasks[stage], completed=record["step"], terms=terms, speed=speed)

    with bar:
        yield listener


def _print_line(record: dict[str, Any]) -> None:
    terms = "  ".join(f"{name} {value:.4f}" for name, value in record["terms"].items())
    left = record["seconds"] / record["step"] * (record["steps"] - record["step"])
    log.console().print(
        f"{record['stage']:>5} {record['step']:>5}/{record['steps']}  {terms}  "
        f"{record['tokens_per_second']:.0f} tokens/s  {left:.0f} s left"
    )
