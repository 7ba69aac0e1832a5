"""report.html: what was made, how good, how it got there, on one page without a network.

The page is a template (page.html.jinja) filled with figures (report/svg); this file turns
metrics, records, the snapshots of report/snapshot and rows of a bench into them. What a folder
does not have is left out.

Legend: L layers, N query heads, K key heads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeqat.bench.chart import RATES, measured
from edgeqat.errors import UsageError
from edgeqat.evaluate.metric import metric_of
from edgeqat.report import svg
from edgeqat.report.snapshot import STAGES, Arrays
from edgeqat.scheme import input_words

TITLES = {"float": "float", "ptq": "PTQ", "qat": "QAT"}
_COLOUR = {stage: number for number, stage in enumerate(STAGES)}
_KINDS = ("weights", "scales", "embeddings", "other")
_QAT = "qat"


def page(
    metrics: dict[str, Any],
    rows: Sequence[tuple[str, float | None]],
    records: Sequence[dict[str, Any]],
    layers: dict[str, Any],
    recipe: str,
    data: Arrays | None = None,
    bench: Sequence[dict[str, Any]] = (),
) -> str:
    """The page of a packed folder: its metrics.json, the rows of its table, metrics.jsonl,
    quantization_config.layers, its recipe, its snapshots and rows of `edgeqat bench`.
    """
    import jinja2

    text = Path(__file__).with_name("page.html.jinja").read_text(encoding="utf-8")
    template = jinja2.Environment(autoescape=True, trim_blocks=True).from_string(text)
    name = metrics["model"].rstrip("/").rpartition("/")[2]
    return template.render(
        title=f"{name} at {metrics['scheme']}",
        summary=_summary(metrics),
        metric=metric_of(metrics).name,
        rows=_rows(metrics, rows),
        conditions=_conditions(metrics),
        sizes=sizes(metrics["bytes"]),
        fp16=_megabytes(metrics["bytes"]["fp16"]),
        losses=loss_figures(records),
        widths=_widths(layers),
        recipe=recipe,
        **(_snapshots(data) if data else {}),
        **(_speeds(bench) if bench else {}),
        **(_coreset(metrics["coreset"]) if metrics.get("coreset") else {}),
    )


def series(records: Sequence[dict[str, Any]]) -> dict[str, tuple[list[int], list[float]]]:
    """Steps and values of every loss term of QAT in metrics.jsonl."""
    curves: dict[str, tuple[list[int], list[float]]] = {}
    for record in records:
        if record.get("stage") == _QAT:
            for name, value in record["terms"].items():
                steps, values = curves.setdefault(name, ([], []))
                steps.append(record["step"])
                values.append(value)
    return curves


def loss_figures(records: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """A curve over the steps for each loss term."""
    return [
        (name, svg.lines(steps, {name: values}, "step", "", first=_COLOUR["qat"]))
        for name, (steps, values) in series(records).items()
        if len(steps) > 1
    ]


def _summary(metrics: dict[str, Any]) -> str:
    train, bits = metrics["train"], metrics["average_bits"]
    parts = [
        f"{train['steps']} steps of QAT on {metrics['data']}, seed {metrics['seed']}",
        f"{train['seconds']:.0f} s, peak {train['peak_rss_bytes'] / 1e9:.1f} GB",
    ]
    if not metric_of(metrics).of_images:
        parts.append(
            f"average bits: activations {bits['activations']:.2f}, KV cache {bits['kv']:.2f}"
        )
    return "; ".join(parts)


def _rows(metrics: dict[str, Any], rows: Sequence[tuple[str, float | None]]) -> list[Any]:
    metric = metric_of(metrics)
    floating = metrics["float"][metric.name]
    entries = []
    for name, value in rows:
        if value is None:
            continue
        entries.append((name, f"{value:.3f}", metric.over_float(value, floating)))
    return entries


def _conditions(metrics: dict[str, Any]) -> str:
    settings = ", ".join(f"{name} {value}" for name, value in metrics["evaluation"].items())
    share = metrics["recovered"]
    text = f"Evaluated with: {settings}."
    if share is not None:
        text += f" Recovered {100 * share:.1f}% of what quantization without training loses."
    return text


def sizes(by_kind: dict[str, int]) -> list[tuple[str, int, str]]:
    """Kind, bytes and words of what a packed file holds, from metrics' `bytes`."""
    kinds = [(kind, by_kind[kind]) for kind in _KINDS if by_kind.get(kind)]
    return [(name, size, _megabytes(size)) for name, size in kinds]


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.2f} MB"


def _widths(layers: dict[str, Any]) -> list[tuple[str, ...]]:
    """Layers of the same name and kind in one row, with their number."""
    counted: Counter[tuple[str, ...]] = Counter()
    for name, spec in layers.items():
        inputs = input_words(spec["input_bits"], spec["input_mode"], spec.get("rotation", 0))
        shape = "x".join(map(str, spec["shape"]))
        group = (spec["tied_to"] and "tied") or str(spec["group_size"] or "row")
        counted[name.rpartition(".")[2], shape, str(spec["bits"]), group, inputs] += 1
    return [(*key, str(count)) for key, count in counted.items()]


def _snapshots(data: Arrays) -> dict[str, Any]:
    heads = list(range(data["attention_float"].shape[1]))
    layers = data["layers"].tolist()
    names = [TITLES[stage] for stage in STAGES]
    numbers = [str(n) for n in range(len(data["blocks"]))]
    errors = {TITLES[s]: (100 * data[f"error_{s}"]).tolist() for s in ("ptq", "qat")}
    panels = [
        {
            "layer": layer,
            "head": head,
            "query": histogram(data, "q", layer, head),
            "key": histogram(data, "k", layer, head),
            "maps": [
                (name, svg.heat_map(data[f"attention_{stage}"][row, head]))
                for stage, name in zip(STAGES, names, strict=True)
            ],
        }
        for row, layer in enumerate(layers)
        for head in heads
    ]
    return {
        "layers": layers,
        "heads": heads,
        "tokens": data["tokens"].tolist(),
        "panels": panels,
        "importance": _importance(data),
        "errors": svg.bars(numbers, errors, "% of power", _COLOUR["ptq"]),
    }


def histogram(data: Arrays, part: str, layer: int, head: int) -> str:
    """Shares of the values of `q` or `k` of one head, of all three models."""
    centres, shares = densities(data, part, layer, head)
    noun = "query" if part == "q" else "key"
    return svg.lines(centres, shares, noun, "% of values", fill=True)


def densities(
    data: Arrays, part: str, layer: int, head: int
) -> tuple[list[float], dict[str, list[float]]]:
    """Centres of the bins and % of the values in each, by model; a key head serves several query
    heads.
    """
    edges = data[f"{part}_edges"][layer]
    shares = {}
    for stage in STAGES:
        counts = data[f"{part}_{stage}"][layer]
        head_counts = counts[head * len(counts) // data[f"q_{stage}"].shape[1]].astype(np.float64)
        shares[TITLES[stage]] = (100 * head_counts / head_counts.sum()).tolist()
    return ((edges[1:] + edges[:-1]) / 2).tolist(), shares


def token_scores(data: Arrays) -> tuple[list[str], dict[str, np.ndarray]]:
    """Tokens, and s_i (i + 1) of each (T,), scaled to the largest: of the mean of the layers, and
    of each layer by its number.

    The first token, which attends to itself only, is left out of the scale.
    """
    scores = data["importance"].astype(np.float64)
    scores = scores * np.arange(1, scores.shape[1] + 1)
    tokens = [text.replace("\n", "\u21b5") for text in data["tokens"].tolist()]
    named = {"all, mean": scores.mean(0)} | {
        str(n): layer_scores for n, layer_scores in enumerate(scores)
    }
    scaled = {
        name: np.clip(values / max(values[1:].max(initial=0.0), 1e-9), 0, 1).round(3)
        for name, values in named.items()
    }
    return tokens, scaled


def _importance(data: Arrays) -> list[tuple[str, list[tuple[str, float]]]]:
    tokens, scores = token_scores(data)
    return [
        (name, list(zip(tokens, values.tolist(), strict=True))) for name, values in scores.items()
    ]


def _coreset(coreset: dict[str, Any]) -> dict[str, Any]:
    """How many were selected, a row for each selection, and the scores of the first and the last;
    a coreset from a file has neither.
    """
    turns = coreset["selections"]
    rows = [
        (
            str(turn["epoch"]),
            turn["selector"],
            *(f"{turn[name]['mean']:.4g}" for name in ("scores", "selected_scores")),
            _percent(turn["accuracy"]),
            _percent(turn["overlap"], 100.0),
            f"{turn['seconds']:.0f}",
        )
        for turn in turns
    ]
    first_and_last = {turn["epoch"]: turn for turn in (*turns[:1], *turns[-1:])}
    return {
        "coreset": f"{coreset['size']} of {coreset['samples']} samples",
        "selections": rows,
        "scores": [(epoch, _scores(turn["histogram"])) for epoch, turn in first_and_last.items()],
    }


def _percent(value: float | None, factor: float = 1.0) -> str:
    return "" if value is None else f"{factor * value:.1f}%"


def _scores(histogram: dict[str, list[float]]) -> str:
    """Curves of all samples and of the selected ones over their scores."""
    return svg.lines(*shares_of_scores(histogram), "score", "% of samples", fill=True)


def shares_of_scores(
    histogram: dict[str, list[float]],
) -> tuple[list[float], dict[str, list[float]]]:
    """Centres of the bins of a selection's histogram, and % of all samples and of the selected
    ones in each.
    """
    edges = np.array(histogram["edges"])
    shares = {}
    for name in ("all", "selected"):
        counts = np.array(histogram[name], dtype=np.float64)
        shares[name] = (100 * counts / max(counts.sum(), 1)).tolist()
    return ((edges[1:] + edges[:-1]) / 2).tolist(), shares


def _speeds(bench: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Bars for each test; behind those of decoding the tokens a second that reading the native
    engine's matrices at the speed of a plain loop would allow.
    """
    try:
        rows = measured(bench)
        if not rows:
            return {}
        charts = []
        rate = next(name for name in RATES if name in rows[0])
        for test in dict.fromkeys(row["test"] for row in rows):
            group = [row for row in rows if row["test"] == test]
            group.sort(key=lambda row: row["engine"] != "native")
            entries = [(row["engine"], row[rate]["mean"], row[rate]["sd"]) for row in group]
            first, limit = group[0], None
            if test.startswith("tg") and first["read_bytes_per_second"] and first["weight_bytes"]:
                limit = first["read_bytes_per_second"] / first["weight_bytes"]
            note = "; dashed: its matrices at the speed of a plain read loop" if limit else ""
            charts.append((f"{test}{note}", svg.rows(entries, RATES[rate], limit)))
        machine = f"{rows[0]['model']} on {rows[0]['cpu']}, {rows[0]['threads']} threads"
    except (KeyError, TypeError, IndexError, StopIteration):
        raise UsageError(
            "bench: the file holds no rows of `edgeqat bench`; write it with edgeqat bench --json"
        ) from None
    return {"speeds": charts, "machine": machine}
