"""The progress bar of a training run: loss terms, speed and the time left, on stderr."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from edgeqat import log


class _Bars:
    """A listener that draws a bar for each stage."""

    def __init__(self, bar: Any) -> None:
        self.bar = bar
        self.tasks: dict[str, Any] = {}

    def __call__(self, record: dict[str, Any]) -> None:
        self.moved(record)
        self.bar.update(self.tasks[record["stage"]], terms=_words(record["terms"]))

    def moved(self, record: dict[str, Any]) -> None:
        """Draw where the run is; the terms of the last record stay."""
        stage = record["stage"]
        speed, unit = _speed(record)
        if stage not in self.tasks:
            self.tasks[stage] = self.bar.add_task(
                stage, total=record["steps"], terms="", speed=0.0, unit=unit
            )
        self.bar.update(self.tasks[stage], completed=record["step"], speed=speed)


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
    with bar:
        yield _Bars(bar)


def _print_line(record: dict[str, Any]) -> None:
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
