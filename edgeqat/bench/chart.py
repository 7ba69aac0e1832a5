"""Measured speeds as a bar chart, PNG."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgeqat.errors import UsageError
from edgeqat.output import whole_file

RATES = {"tokens_per_second": "tokens/s", "images_per_second": "images/s"}


def measured(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of `edgeqat bench` that hold a speed: not those of engines that failed."""
    return [row for row in rows if "error" not in row]


def check_installed() -> None:
    """Refuse charts where matplotlib is missing."""
    if find_spec("matplotlib") is None:
        raise UsageError("png: matplotlib is not installed; pip install 'edgeqat[plots]'")


def speed_bars(path: Path, rows: list[dict[str, Any]]) -> None:
    """Rates of measured rows of `edgeqat bench`: a panel per test, a bar per engine."""
    tests = list(dict.fromkeys(row["test"] for row in rows))
    engines = list(dict.fromkeys(row["engine"] for row in rows))
    rate = next(name for name in RATES if name in rows[0])
    height = 1.2 + 0.32 * len(engines)
    figure = new(3.2 * len(tests) + 1.6, height)
    panels = figure.subplots(1, len(tests), squeeze=False, sharey=True)[0]
    for panel, test in zip(panels, tests, strict=True):
        speeds = {row["engine"]: row[rate] for row in rows if row["test"] == test}
        measured = [engine for engine in engines if engine in speeds]  # files may have been joined
        means, sds = ([speeds[engine][key] for engine in measured] for key in ("mean", "sd"))
        colours = ["C0" if engine == "native" else "C7" for engine in measured]
        bars = panel.barh(measured, means, xerr=sds, color=colours)
        panel.bar_label(bars, fmt="%.0f", padding=3, fontsize=8)
        panel.set_title(test)
        panel.set_xlabel(RATES[rate])
        panel.margins(x=0.2)
    panels[0].invert_yaxis()
    first = rows[0]
    figure.suptitle(f"{first['model']}, {first['threads']} threads, {first['cpu']}", fontsize=9)
    save(figure, path)


def new(width: float, height: float) -> Any:
    """An empty matplotlib figure, in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Any, path: Path) -> None:
    """Write a matplotlib figure as PNG, whole or not at all."""
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
