"""`edgeqat bench`: how fast a packed folder runs, beside other engines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgeqat import log
from edgeqat.errors import UsageError
from edgeqat.scheme import Scheme


def command(
    folder: Annotated[Path | None, typer.Argument(help="Packed folder.")] = None,
    shape: Annotated[
        str | None,
        typer.Option(help="Random weights: tinyllama-1.1b, llama-58m, smollm-135m or llama-8m."),
    ] = None,
    scheme: Annotated[
        str | None, typer.Option(help="Scheme of --shape; also --w4a8kv4 and so on.")
    ] = None,
    engine: Annotated[
        list[str] | None,
        typer.Option(help="Engine or family (native, llama.cpp, ...). Repeatable; default: all."),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Threads; default: physical cores.")
    ] = None,
    depth: Annotated[
        list[int] | None,
        typer.Option(min=0, help="Tokens before decoding. Repeatable; default: 0 and 1984."),
    ] = None,
    repeat: Annotated[int, typer.Option(min=1, help="Repetitions after the warm-up.")] = 5,
    json: Annotated[Path | None, typer.Option("--json", help="Write the rows here.")] = None,
    csv: Annotated[Path | None, typer.Option("--csv", help="Write the rows here.")] = None,
    png: Annotated[Path | None, typer.Option("--png", help="Write a bar chart here.")] = None,
    listed: Annotated[
        bool, typer.Option("--list", help="Show engines and instruction sets; measure nothing.")
    ] = False,
) -> None:
    """Measure the speed of every engine, in turns.

    Of a language model prefill (pp) and decoding (tg); of an image classifier one image and 64 at
    once.
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
    from edgeqat.evaluate import chart
    from edgeqat.hf import image_folder
    from edgeqat.output import check_file, write_json
    from edgeqat.pipeline import bench, image_bench

    check_file(json, csv, png)
    if png is not None:
        chart.check_installed()
    images = folder is not None and image_folder.is_image_folder(checkpoint.read_config(folder))
    if images:
        if depth:
            raise UsageError("depth: images have none; leave it out")
        assert folder is not None
        with log.console().status("measuring"):
            rows = image_bench.run(folder, tuple(engine or ()), threads, repeat)
    else:
        if folder is not None:
            subject = bench.Subject.of_folder(folder)
        else:
            assert shape is not None
            subject = bench.Subject.of_shape(shape, str(Scheme.parse(scheme or "w4a8kv4")))
        with log.console().status("opening") as status:
            rows = bench.run(
                subject, engine or (), threads, depth or (), repeat,
                lambda name, test: status.update(f"{test} on {name}"),
            )  # fmt: skip
    if json is not None:
        write_json(json, rows)
    if csv is not None:
        bench.write_csv(csv, rows)
    if png is not None:
        chart.speed_bars(png, rows)
    (_image_table if images else _table)(rows)


def _image_table(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    print(f"{rows[0]['model']} on {rows[0]['cpu']}, {rows[0]['threads']} threads")
    table = Table()
    for column in ("test", "engine", "scheme", "images/s", "sd", "ms/batch", "file MB"):
        table.add_column(column, justify="left" if column in ("test", "engine") else "right")
    for row in rows:
        speed = row["images_per_second"]
        table.add_row(
            row["test"],
            row["engine"],
            row["scheme"],
            f"{speed['mean']:.1f}",
            f"{speed['sd']:.1f}",
            f"{row['milliseconds']:.2f}",
            f"{row['file_bytes'] / 1e6:.2f}",
        )
    Console(width=max(130, Console().width)).print(table)


def _list() -> None:
    from edgeqat import native
    from edgeqat.evaluate.engines import KINDS, missing

    if native.library() is not None:
        active = native.active_isa()
        for name, available in native.isas().items():
            state = "active" if name == active else "available" if available else "not here"
            print(f"isa     {name:20} {state}")
    for name in KINDS:
        print(f"engine  {name:20} {missing(name) or 'available'}")


def _table(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    first = rows[0]
    read = first["read_bytes_per_second"]
    loop = f", read loop {read / 1e9:.1f} GB/s" if read else ""
    print(f"{first['model']} on {first['cpu']}, {first['threads']} threads{loop}")
    table = Table()
    for column in ("test", "engine", "scheme", "isa"):
        table.add_column(column)
    for column in ("tokens/s", "sd", "ms/token", "first ms", "of read", "RSS MB", "file MB"):
        table.add_column(column, justify="right")
    for index, row in enumerate(rows):
        speed, share, wait = (
            row[key] for key in ("tokens_per_second", "read_share", "first_token_milliseconds")
        )
        table.add_row(
            row["test"],
            row["engine"],
            row["scheme"],
            row["isa"],
            f"{speed['mean']:.1f}",
            f"{speed['sd']:.1f}",
            f"{row['milliseconds_per_token']:.2f}",
            "" if wait is None else f"{wait:.1f}",
            "" if share is None else f"{share:.0%}",
            f"{row['peak_rss_bytes'] / 1e6:.0f}",
            f"{row['file_bytes'] / 1e6:.1f}",
            end_section=index + 1 == len(rows) or rows[index + 1]["test"] != row["test"],
        )
    Console(width=max(130, Console().width)).print(table)
