"""`edgeqat report`: the page of a packed folder, in one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeqat import log

EXAMPLES = (
    "edgeqat report demo-w4a8kv4",
    "edgeqat report demo-w4a8kv4 --bench rows.json --png FIGURES",
)


def command(
    folder: Annotated[Path, typer.Argument(help="Packed folder.")],
    output: Annotated[
        Path | None, typer.Option("--output", help="HTML file to write. [FOLDER-report.html]")
    ] = None,
    bench: Annotated[
        Path | None, typer.Option("--bench", help="JSON of `edgeqat bench`: adds speed.")
    ] = None,
    png: Annotated[
        Path | None, typer.Option("--png", help="Folder for the figures as PNG as well.")
    ] = None,
) -> None:
    """Write one self-contained page about a packed folder.

    It shows table, losses, attention, errors, sizes and speed. A packed folder holds its
    report.html already; this adds speed, writes it elsewhere, or draws its figures as PNG.
    """
    log.setup()
    from edgeqat.report.files import report

    target = output or Path(f"{folder.absolute().name}-report.html")
    for path in report(folder, target, bench, png):
        print(f"wrote {path}")
