"""Charts as PNG: measured rows, and the figures of the report."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgeqat.errors import UsageError
from edgeqat.evaluate.portrait import STAGES, Arrays
from edgeqat.evaluate.report import TITLES, densities
from edgeqat.output import whole_file


def check_installed() -> None:
    """Refuse charts where matplotlib is missing."""
    if find_spec("matplotlib") is None:
        raise UsageError("png: matplotlib is not installed; pip install 'edgeqat[plots]'")


def speed_bars(path: Path, rows: list[dict[str, Any]]) -> None:
    """Tokens a second of rows of `edgeqat bench`: a panel per test, a bar per engine."""
    from matplotlib.figure import Figure

    tests = list(dict.fromkeys(row["test"] for row in rows))
    engines = list(dict.fromkeys(row["engine"] for row in rows))
    height = 1.2 + 0.32 * len(engines)
    figure = Figure(figsize=(3.2 * len(tests) + 1.6, height), layout="constrained")
    panels = figure.subplots(1, len(tests), squeeze=False, sharey=True)[0]
    for panel, test in zip(panels, tests, strict=True):
        speeds = {row["engine"]: row["tokens_per_second"] for row in rows if row["test"] == test}
        means, sds = ([speeds[engine][key] for engine in engines] for key in ("mean", "sd"))
        colours = ["C0" if engine == "native" else "C7" for engine in engines]
        bars = panel.barh(engines, means, xerr=sds, color=colours)
        panel.bar_label(bars, fmt="%.0f", padding=3, fontsize=8)
        panel.set_title(test)
        panel.set_xlabel("tokens/s")
        panel.margins(x=0.2)
    panels[0].invert_yaxis()
    first = rows[0]
    figure.suptitle(f"{first['model']}, {first['threads']} threads, {first['cpu']}", fontsize=9)
    _save(figure, path)


def report_pictures(
    folder: Path, losses: dict[str, tuple[list[int], list[float]]], data: Arrays | None
) -> list[Path]:
    """The figures of the report: loss terms, and for each layer that is shown queries, keys and
    attention of its first head; returns the files.
    """
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    curves = {name: own for name, own in losses.items() if len(own[0]) > 1}
    if curves:
        figure = Figure(figsize=(3.6 * len(curves), 2.8), layout="constrained")
        panels = figure.subplots(1, len(curves), squeeze=False)[0]
        for panel, (name, (steps, values)) in zip(panels, curves.items(), strict=True):
            panel.plot(steps, values)
            panel.set(xlabel="step", title=name)
        written.append(folder / "losses.png")
        _save(figure, written[-1])
    for row, layer in enumerate([] if data is None else data["layers"].tolist()):
        assert data is not None
        figure = Figure(figsize=(11, 5.2), layout="constrained")
        upper, lower = figure.subfigures(2, 1).tolist()
        for panel, part, noun in zip(upper.subplots(1, 2), "qk", ("query", "key"), strict=True):
            centres, shares = densities(data, part, layer, 0)
            for name, own in shares.items():
                panel.plot(centres, own, label=name)
            panel.set(title=f"{noun}, layer {layer}, head 0", ylabel="% of values")
            panel.legend()
        for panel, stage in zip(lower.subplots(1, len(STAGES)), STAGES, strict=True):
            panel.imshow(data[f"attention_{stage}"][row, 0].astype(float) ** 0.5, cmap="Blues")
            panel.set_title(f"attention, {TITLES[stage]}")
        written.append(folder / f"layer{layer}.png")
        _save(figure, written[-1])
    return written


def _save(figure: Any, path: Path) -> None:
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
