"""The progress bar of a training run: loss terms, speed and the time left, on stderr."""

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
        TextColumn("{task.fields[speed]:>6.0f} {task.fields[unit]}/s"),
        TimeRemainingColumn(),
        console=log.console(),
    )
    tasks: dict[str, Any] = {}

    def listener(record: dict[str, Any]) -> None:
        stage = record["stage"]
        speed, unit = _speed(record)
        if stage not in tasks:
            tasks[stage] = bar.add_task(
                stage, total=record["steps"], terms="", speed=0.0, unit=unit
            )
        shown: dict[str, Any] = {"completed": record["step"], "speed": speed}
        if record["terms"]:  # else the last ones stay
            shown["terms"] = _words(record["terms"])
        bar.update(tasks[stage], **shown)

    with bar:
        yield listener


def _print_line(record: dict[str, Any]) -> None:
    if not record["terms"]:
        return
    speed, unit = _speed(record)
    left = record["seconds"] / record["step"] * (record["steps"] - record["step"])
    log.console().print(
        f"{record['stage']:>5} {record['step']:>5}/{record['steps']}  {_words(record['terms'])}  "
        f"{speed:.0f} {unit}/s  {left:.0f} s left",
        soft_wrap=True,
    )


def _words(terms: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4f}" for name, value in terms.items())


def _speed(record: dict[str, Any]) -> tuple[float, str]:
    """The speed of a record and what is counted: tokens or samples."""
    field = next(name for name in record if name.endswith("_per_second"))
    return record[field], field.removesuffix("_per_second")
