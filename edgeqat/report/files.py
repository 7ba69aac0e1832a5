"""`edgeqat report`: the page of a packed folder, and its figures as PNG."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgeqat import checkpoint
from edgeqat.bench import chart
from edgeqat.checkpoint import METRICS, RECORDS
from edgeqat.errors import FormatError, OutputError, UsageError
from edgeqat.output import check_file, check_folder, real, write_text
from edgeqat.recipe import files as recipes
from edgeqat.report import card, snapshot
from edgeqat.report import page as pages
from edgeqat.report import png as drawings

FILE = "report.html"


def report(
    folder: Path, output: Path, bench: Path | None = None, pictures: Path | None = None
) -> list[Path]:
    """Write the page of a packed folder to `output`, with the rows of `bench` where a file is
    named, and PNGs into the folder `pictures`; returns what was written. Raises an EdgeQATError in
    one line.
    """
    config = checkpoint.verify(folder)
    _check(output)
    rows = _bench(bench) if bench is not None else []
    if pictures is not None:
        chart.check_installed()
        check_folder(pictures)
    metrics = json.loads(_text(folder, METRICS))
    records = read_records(folder / RECORDS)
    snapshot_file = folder / snapshot.FILE
    data = snapshot.load(snapshot_file) if snapshot_file.is_file() else None
    html = pages.page(
        metrics, card.table(metrics), records, config["quantization_config"]["layers"],
        _text(folder, recipes.RESOLVED), data, rows,
    )  # fmt: skip
    write_text(output, html)
    if pictures is None:
        return [output]
    real(pictures).mkdir(parents=True, exist_ok=True)  # of a link that leads to nothing yet
    return [output, *drawings.write(pictures, metrics, records, data, rows)]


def read_records(path: Path) -> list[dict[str, Any]]:
    """Records of metrics.jsonl; none where nothing was trained. A last line that a running or
    killed run has not finished does not count, nor does a loss that was no number.
    """
    if not path.is_file():
        return []
    whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
    records = [json.loads(line) for line in whole.splitlines()]
    for record in records:
        terms = record["terms"].items()
        record["terms"] = {name: value for name, value in terms if value is not None}
    return records


def _text(folder: Path, name: str) -> str:
    path = folder / name
    if not path.is_file():  # all that was written is there: it is of edgeqat.save()
        raise FormatError(f"{name}: '{folder}' has none; name a folder `edgeqat quantize` wrote")
    return path.read_text(encoding="utf-8")


def _bench(path: Path) -> list[dict[str, Any]]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UsageError(
            f"bench: '{path}' is no readable JSON; write it with edgeqat bench --json"
        ) from None
    return rows if isinstance(rows, list) else [rows]


def _check(output: Path) -> None:
    check_file(output)
    if checkpoint.is_packed(real(output).parent):
        raise OutputError(
            f"output: '{output}' is inside a packed folder, whose files are hashed; choose another"
        )
