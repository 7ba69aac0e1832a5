"""`edgeqat verify`: does every runtime compute what was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgeqat import log
from edgeqat.cli import options
from edgeqat.output import check_file, write_json

EXAMPLES = (
    "edgeqat verify demo-w4a8kv4",
    "edgeqat verify FOLDER model.gguf --data TEXT --least 99.5 --json verified.json",
)


def command(
    folder: Annotated[Path, typer.Argument(help="Packed folder of a language model.")],
    exports: Annotated[
        list[Path] | None,
        typer.Argument(help="GGUF files and compressed-tensors folders exported from it."),
    ] = None,
    data: options.DataOption = None,
    blocks: Annotated[
        int, typer.Option("--blocks", min=1, help="Held-out blocks, evenly spaced.")
    ] = 10,
    least: Annotated[
        float | None,
        typer.Option("--least", min=0, max=100, help="Fail below this share of same top tokens."),
    ] = None,
    output: Annotated[Path | None, typer.Option("--json", help="JSON file to write.")] = None,
    threads: options.ThreadsOption = None,
) -> None:
    """Check that every installed runtime computes what was trained.

    Our engine, llama.cpp and transformers (compressed-tensors) predict the same held-out tokens as
    the packed model. Without EXPORTS, a folder is exported for each runtime that holds it exactly.
    """
    log.setup()
    from edgeqat.compare.verification import (
        check_exports,
        check_folder,
        check_least,
        verify,
    )

    check_file(output)
    check_folder(folder)
    check_exports(exports or [])
    with log.console().status("loading") as status:
        result = verify(folder, exports or [], data, blocks, threads, status.update)
    _table(result)
    if output is not None:
        write_json(output, result)
        print(f"wrote {output}")
    if least is not None:
        check_least(result, least)


def _table(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    evaluation = result["evaluation"]
    print(
        f"{result['model']} at {result['scheme']}: perplexity {result['perplexity']:.3f} on "
        f"{evaluation['blocks']} blocks of {evaluation['context']} tokens"
    )
    table = Table()
    for column in ("runtime", "file"):
        table.add_column(column, overflow="fold")
    for column in ("same top", "KL", "perplexity", "seconds"):
        table.add_column(column, justify="right")
    for row in result["rows"]:
        if "reason" in row:
            table.add_row(row["runtime"], escape(row["reason"]), "", "", "", "")
            continue
        table.add_row(
            row["runtime"], escape(row["file"] or "exported here"), f"{row['same_top']:.2f}%",
            f"{row['kl']:.1e}", f"{row['perplexity']:.3f}", f"{row['seconds']:.1f}",
        )  # fmt: skip
    Console(width=max(110, Console().width)).print(table)
