"""`edgeqat compare`: how good are ways of quantizing one float model, side by side."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from edgeqat import log
from edgeqat.cli import options
from edgeqat.cli.quantize import recipe_of
from edgeqat.errors import UsageError
from edgeqat.scheme import Scheme

_REASON = 60  # characters of a line that says why a row failed

EXAMPLES = (
    "edgeqat compare demo --rows ours,llama.cpp --blocks 10",
    "edgeqat compare FOLDER --data TEXT --w4a8kv4 --output FOLDER-compared",
)


def command(
    model: Annotated[
        str | None, typer.Argument(help="Float model: alias, local folder, GGUF file or hub id.")
    ] = None,
    data: options.DataOption = None,
    rows: Annotated[
        str | None,
        typer.Option(
            "--rows", help="Rows or families, e.g. ours,llama.cpp; default: all installed."
        ),
    ] = None,
    scheme: Annotated[
        list[str] | None,
        typer.Option("--scheme", help="Bits of our rows. Repeatable; --w4a8kv4 is one. [w4a8kv4]"),
    ] = None,
    qat: Annotated[
        list[Path] | None,
        typer.Option("--qat", help="Packed folder of the same model, as a row. Repeatable."),
    ] = None,
    steps: Annotated[
        int, typer.Option("--steps", min=0, help="Train our rows too, so many steps.")
    ] = 0,
    blocks: Annotated[
        int, typer.Option("--blocks", min=0, help="Held-out blocks, evenly spaced; 0: all.")
    ] = 10,
    recipe: options.RecipeOption = None,
    output: options.OutputOption = None,
    overwrite: options.OverwriteOption = False,
    threads: options.ThreadsOption = None,
    settings: options.SetOption = None,
    listed: Annotated[
        bool, typer.Option("--list", help="Show rows and how to get those that are absent.")
    ] = False,
) -> None:
    """Compare ways of quantizing a model: size, perplexity and KL.

    Our rows stand beside llama.cpp, auto-round and torchao, as far as they are installed. All are
    scored on the same held-out blocks against the float model. A row that fails says why; the
    others go on. A stopped run with --output continues.
    """
    from edgeqat.compare import rows as known

    log.setup()
    if listed:
        for name, state in known.listing():
            print(f"row  {name:32} {state}")
        return
    if model is None:
        raise UsageError("model: none is named; give `edgeqat compare MODEL`, or --list")
    from edgeqat.recipe import files as recipes

    schemes = [str(Scheme.parse(one)) for one in scheme or []]
    values = options.overrides(
        settings, model__name=model, data__root=data, data__valid_blocks=blocks,
        quant__scheme=schemes[0] if schemes else None,
    )  # fmt: skip
    resolved = recipes.load(recipe or recipe_of(model), values)
    schemes = schemes or [resolved.quant.scheme]
    place = None if output is None else Path(output)
    _check(resolved, place, overwrite, rows, schemes, qat or [], steps)
    from edgeqat.compare.comparison import check_computed, compare

    with log.console().status("loading") as status:
        comparison = compare(
            resolved, place, overwrite, rows, schemes, qat or [], steps, threads,
            shlex.join(["edgeqat", *sys.argv[1:]]), status.update,
        )  # fmt: skip
    _table(comparison)
    if place is not None:
        print(f"wrote {place}")
    check_computed(comparison)


def _check(
    resolved: Any,
    output: Path | None,
    overwrite: bool,
    rows: str | None,
    schemes: list[str],
    qat: list[Path],
    steps: int,
) -> None:
    """Refuse what can be refused before torch is loaded."""
    from edgeqat.compare.rows import select
    from edgeqat.pipeline import start

    select(rows, schemes, [("", str(folder)) for folder in qat], steps)
    for one in schemes:
        if Scheme.parse(one).is_float:
            raise UsageError(f"scheme: {one} leaves everything in float; write for example w4a8kv4")
    if output is not None:
        start.check_start(output, overwrite)
    start.check_sources(resolved)


def _table(comparison: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    evaluation, machine = comparison["evaluation"], comparison["machine"]
    print(
        f"{comparison['model']} on {evaluation['blocks']} blocks of "
        f"{evaluation['context']} tokens; {machine['cpu']}, {machine['threads']} threads"
    )
    table = Table()
    for column in ("row", "format"):
        table.add_column(column)
    numbers = (
        "MB", "bits", "of matrices", "perplexity", "over float", "KL", "same top", "seconds",
        "peak MB",
    )  # fmt: skip
    for column in numbers:
        table.add_column(column, justify="right")
    failed = any("error" in row for row in comparison["rows"])
    if failed:
        table.add_column("failed", overflow="fold", max_width=_REASON)
    for row in comparison["rows"]:
        cells = [row["row"], row["format"]]
        if "error" in row:
            cells += [""] * len(numbers) + [row["error"]]
        else:
            cells += _numbers(row)
        table.add_row(*cells)
    Console(width=max(150 + failed * _REASON, Console().width)).print(table)


def _numbers(row: dict[str, Any]) -> list[str]:
    seconds, peak = row.get("seconds"), row.get("peak_bytes")
    return [
        f"{row['bytes'] / 1e6:.2f}",
        f"{row['bits']:.2f}",
        f"{row['matrix_bits']:.2f}",
        f"{row['perplexity']:.3f}",
        f"{row['over_float']:+.1f}%",
        f"{row['kl']:.4f}",
        f"{row['same_top']:.1f}%",
        "" if seconds is None else f"{seconds:.1f}",
        "" if peak is None else f"{peak / 1e6:.0f}",
    ]
