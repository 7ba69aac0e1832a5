"""The figures of the report as PNG, for papers and slides: what the page draws, by matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeqat.bench import chart
from edgeqat.report.page import TITLES, densities, series, shares_of_scores, sizes, token_scores
from edgeqat.report.snapshot import STAGES, Arrays


def write(
    folder: Path,
    metrics: dict[str, Any],
    records: Sequence[dict[str, Any]],
    data: Arrays | None = None,
    bench: Sequence[dict[str, Any]] = (),
) -> list[Path]:
    """Writes into `folder` what the arguments (those of report.page) have: bytes.png, losses.png,
    coreset.png, errors.png, importance.png, layerN.png of the layers shown, speed.png; returns the
    files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    figures = {"bytes": _bytes(metrics), "losses": _losses(records), "coreset": _coreset(metrics)}
    if data is not None:
        figures |= {"errors": _errors(data), "importance": _importance(data)}
        for row, layer in enumerate(data["layers"].tolist()):
            figures[f"layer{layer}"] = _layer(data, row, layer)
    written = []
    for name, figure in figures.items():
        if figure is not None:
            written.append(folder / f"{name}.png")
            chart.save(figure, written[-1])
    if rows := chart.measured(bench):
        written.append(folder / "speed.png")
        chart.speed_bars(written[-1], rows)
    return written


def _bytes(metrics: dict[str, Any]) -> Any:
    """One bar of the packed file, by kind, under that of fp16."""
    figure = chart.new(7, 2)
    panel = figure.subplots()
    panel.barh(["fp16"], [metrics["bytes"]["fp16"] / 1e6], color="C7")
    left = 0.0
    for name, size, _ in sizes(metrics["bytes"]):
        panel.barh([metrics["scheme"]], [size / 1e6], left=left, label=name)
        left += size / 1e6
    panel.set_xlabel("MB")
    panel.legend(fontsize=8)
    return figure


def _losses(records: Sequence[dict[str, Any]]) -> Any | None:
    """A panel for each loss term of QAT, over the steps."""
    curves = {name: curve for name, curve in series(records).items() if len(curve[0]) > 1}
    if not curves:
        return None
    figure = chart.new(3.6 * len(curves), 2.8)
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    for panel, (name, (steps, values)) in zip(panels, curves.items(), strict=True):
        panel.plot(steps, values)
        panel.set(xlabel="step", title=name)
    return figure


def _coreset(metrics: dict[str, Any]) -> Any | None:
    """Scores of all samples and of the selected ones at the first and the last selection."""
    turns = (metrics.get("coreset") or {}).get("selections")
    if not turns:
        return None
    turns = [turns[0], *turns[1:][-1:]]
    figure = chart.new(3.6 * len(turns), 2.8)
    for panel, turn in zip(figure.subplots(1, len(turns), squeeze=False)[0], turns, strict=True):
        centres, shares = shares_of_scores(turn["histogram"])
        for name, share in shares.items():
            panel.plot(centres, share, label=name)
        panel.set(xlabel=f"score ({turn['selector']})", ylabel="% of samples")
        panel.set_title(f"epoch {turn['epoch']}")
        panel.legend()
    return figure


def _errors(data: Arrays) -> Any:
    """Error of each decoder layer's output before and after training."""
    figure = chart.new(7, 2.8)
    panel = figure.subplots()
    numbers = np.arange(len(data["blocks"]))
    for place, stage in enumerate(("ptq", "qat")):
        errors = 100 * data[f"error_{stage}"]
        panel.bar(numbers + 0.4 * place, errors, width=0.4, label=TITLES[stage])
    panel.set_xticks(numbers + 0.2, labels=[str(n) for n in numbers])
    panel.set(xlabel="layer", ylabel="output error, % of power")
    panel.margins(y=0.25)  # room for the legend
    panel.legend(ncols=2, loc="upper right")
    return figure


def _importance(data: Arrays) -> Any:
    """A row for each layer and their mean, a column for each token: how important it is."""
    tokens, scores = token_scores(data)
    figure = chart.new(12, 1.6 + 0.28 * len(scores))
    panel = figure.subplots()
    values = np.stack(list(scores.values()))
    shown = panel.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    plain = [text.replace("$", r"\$") for text in tokens]  # matplotlib's sign of mathematics
    panel.set_xticks(range(len(plain)), labels=plain, rotation=90, fontsize=7)
    panel.set_yticks(range(len(scores)), labels=list(scores), fontsize=7)
    panel.set(ylabel="layer", title="token importance")
    figure.colorbar(shown)
    return figure


def _layer(data: Arrays, row: int, layer: int) -> Any:
    """Queries, keys and attention of the first head of a layer: float, PTQ and QAT."""
    figure = chart.new(11, 5.2)
    upper, lower = figure.subfigures(2, 1).tolist()
    for panel, part, noun in zip(upper.subplots(1, 2), "qk", ("query", "key"), strict=True):
        centres, shares = densities(data, part, layer, 0)
        for name, density in shares.items():
            panel.plot(centres, density, label=name)
        panel.set(title=f"{noun}, layer {layer}, head 0", ylabel="% of values")
        panel.legend()
    for panel, stage in zip(lower.subplots(1, len(STAGES)), STAGES, strict=True):
        panel.imshow(data[f"attention_{stage}"][row, 0].astype(float) ** 0.5, cmap="Blues")
        panel.set_title(f"attention, {TITLES[stage]}")
    return figure
