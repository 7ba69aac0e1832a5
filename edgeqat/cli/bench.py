"""`edgeqat bench`: how fast a packed folder runs, beside other engines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgeqat import log
from edgeqat.cli.options import ThreadsOption
from edgeqat.errors import UsageError
from edgeqat.scheme import Scheme

_REASON = 50  # characters of a line that says why an engine failed

EXAMPLES = (
    "edgeqat bench demo-w4a8kv4 --engine native --json rows.json",
    "edgeqat bench --shape tinyllama-1.1b --w4a8kv4 --threads 2 --repeat 3",
)


def command(
    folder: Annotated[Path | None, typer.Argument(help="Packed folder.")] = None,
    shape: Annotated[
        str | None,
        typer.Option(
            help="Random weights shaped like tinyllama-1.1b, llama-58m, smollm-135m or llama-8m."
        ),
    ] = None,
    scheme: Annotated[
        str | None, typer.Option(help="Bits of --shape, e.g. w4a8kv4; --w4a8kv4 is the same.")
    ] = None,
    engine: Annotated[
        list[str] | None,
        typer.Option(help="Engine or family (native, llama.cpp, ...). Repeatable; default: all."),
    ] = None,
    threads: ThreadsOption = None,
    depth: Annotated[
        list[int] | None,
        typer.Option(min=0, help="Tokens before decoding. Repeatable; default: 0 and 1984."),
    ] = None,
    repeat: Annotated[int, typer.Option(min=1, help="Repetitions after the warm-up.")] = 5,
    json: Annotated[Path | None, typer.Option("--json", help="JSON file to write.")] = None,
    csv: Annotated[Path | None, typer.Option("--csv", help="CSV file to write.")] = None,
    png: Annotated[Path | None, typer.Option("--png", help="Bar chart to write.")] = None,
    listed: Annotated[
        bool, typer.Option("--list", help="Show engines and instruction sets; measure nothing.")
    ] = False,
) -> None:
    """Measure the speed of every engine, in turns.

    Of a language model prefill (pp) and decoding (tg); of an image classifier one image and 64 at
    once. An engine that fails says why in its rows; the others go on.
    """
    log.setup()
    if listed:
        _list()
        return
    if (folder is None) == (shape is None):
        raise UsageError("folder: give a packed folder or --shape, one of them")
    if folder is not None and scheme is not None:
        raise UsageError(f"scheme: '{scheme}' is for --shape; a packed folder has its own")
    from edgeqat import checkpoint
    from edgeqat.bench import chart, images, text
    from edgeqat.hf import image_folder
    from edgeqat.output import check_file, write_json

    check_file(json, csv, png)
    if png is not None:
        chart.check_installed()
    of_images = folder is not None and image_folder.is_image_folder(checkpoint.read_config(folder))
    if of_images:
        if depth:
            raise UsageError("depth: images have none; leave it out")
        assert folder is not None
        with log.console().status("measuring"):
            rows = images.run(folder, tuple(engine or ()), threads, repeat)
    else:
        if folder is not None:
            subject = text.Subject.of_folder(folder)
        else:
            assert shape is not None
            subject = text.Subject.of_shape(shape, str(Scheme.parse(scheme or "w4a8kv4")))
        with log.console().status("opening") as status:
            rows = text.run(
                subject, engine or (), threads, depth or (), repeat,
                lambda name, test: status.update(f"{test} on {name}"),
            )  # fmt: skip
    if json is not None:
        write_json(json, rows)
    if csv is not None:
        text.write_csv(csv, rows)
    if png is not None and chart.measured(rows):
        chart.speed_bars(png, chart.measured(rows))
    (_image_table if of_images else _table)(rows)
    text.check_measured(rows)


def _image_table(rows: list[dict[str, Any]]) -> None:
    from edgeqat.bench.chart import measured

    print(f"{rows[0]['model']} on {rows[0]['cpu']}, {rows[0]['threads']} threads")
    names = ["test", "engine", "scheme"]
    table = _new(names, ["images/s", "sd", "ms/batch", "file MB"], rows)
    for row in rows:
        cells = [row[name] for name in names]
        if measured([row]):
            speed = row["images_per_second"]
            cells += [
                f"{speed['mean']:.1f}",
                f"{speed['sd']:.1f}",
                f"{row['milliseconds']:.2f}",
                f"{row['file_bytes'] / 1e6:.2f}",
            ]
        else:
            cells += [""] * 4 + [row["error"]]
        table.add_row(*cells)
    _show(table)


def _list() -> None:
    from edgeqat import native
    from edgeqat.bench.engines import KINDS, missing

    if native.library() is not None:
        active = native.active_isa()
        for name, available in native.isas().items():
            state = "active" if name == active else "available" if available else "not here"
            print(f"isa     {name:20} {state}")
    for name in KINDS:
        print(f"engine  {name:20} {missing(name) or 'available'}")


def _table(rows: list[dict[str, Any]]) -> None:
    from edgeqat.bench.chart import measured

    first = rows[0]
    read = next((row["read_bytes_per_second"] for row in measured(rows)), None)
    loop = f", read loop {read / 1e9:.1f} GB/s" if read else ""
    print(f"{first['model']} on {first['cpu']}, {first['threads']} threads{loop}")
    names = ["test", "engine", "scheme", "isa"]
    numbers = ["tokens/s", "sd", "ms/token", "CPU ms", "first ms", "of read", "RSS MB", "file MB"]
    table = _new(names, numbers, rows)
    for index, row in enumerate(rows):
        cells = [row.get(name, "") for name in names]  # what failed to open has no isa
        cells += _numbers(row) if measured([row]) else [""] * len(numbers) + [row["error"]]
        end = index + 1 == len(rows) or rows[index + 1]["test"] != row["test"]
        table.add_row(*cells, end_section=end)
    _show(table)


def _numbers(row: dict[str, Any]) -> list[str]:
    speed, share, wait = (
        row[key] for key in ("tokens_per_second", "read_share", "first_token_milliseconds")
    )
    spent = row.get("processor_milliseconds_per_token")
    return [
        f"{speed['mean']:.1f}",
        f"{speed['sd']:.1f}",
        f"{row['milliseconds_per_token']:.2f}",
        "" if spent is None else f"{spent:.2f}",
        "" if wait is None else f"{wait:.1f}",
        "" if share is None else f"{share:.0%}",
        f"{row['peak_rss_bytes'] / 1e6:.0f}",
        f"{row['file_bytes'] / 1e6:.1f}",
    ]


def _new(names: list[str], numbers: list[str], rows: list[dict[str, Any]]) -> Any:
    """A table of names and numbers, and a column of errors where there are any."""
    from rich.table import Table

    table = Table()
    for column in names:
        table.add_column(column)
    for column in numbers:
        table.add_column(column, justify="right")
    if any("error" in row for row in rows):
        table.add_column("failed", overflow="fold", max_width=_REASON)
    return table


def _show(table: Any) -> None:
    from rich.console import Console

    Console(width=max(130 + _REASON, Console().width)).print(table)
