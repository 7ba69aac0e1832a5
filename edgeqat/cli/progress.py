"""The progress bar of a training run: loss terms, tokens/s and the time left, on stderr."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from edgeqat import log


@contextmanager
def training_progress() -> Iterator[Any]:
    """A listener for training records that draws a bar per stage; log lines print above it."""
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
