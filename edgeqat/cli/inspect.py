"""`edgeqat inspect`: what a packed folder holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeqat.errors import FormatError
from edgeqat.scheme import average_words, input_words

ROWS = ("float", "float_same_steps", "ptq", "qat_start", "qat")

EXAMPLES = (
    "edgeqat inspect demo-w4a8kv4",
    "edgeqat inspect demo-w4a8kv4 --verify",
)


def command(
    folder: Annotated[Path, typer.Argument(help="Packed folder.")],
    verify: Annotated[
        bool, typer.Option("--verify", help="Check every file against its hash.")
    ] = False,
) -> None:
    """Print scheme, layers, sizes and results of a packed folder."""
    import json

    from rich.console import Console
    from rich.table import Table

    from edgeqat import checkpoint
    from edgeqat.recipe.quant import QuantSection

    config = checkpoint.verify(folder) if verify else checkpoint.read_config(folder)
    quantization = config["quantization_config"]
    print(
        f"{config['architectures'][0]} at {quantization['scheme']}, "
        f"format {quantization['format_version']}"
    )
    rows = Table()
    for column in ("layer", "shape", "bits", "group", "input", "bytes"):
        rows.add_column(column)
    header = checkpoint.read_header(folder / checkpoint.WEIGHTS)
    sizes = {
        name: entry["data_offsets"][1] - entry["data_offsets"][0] for name, entry in header.items()
    }
    for name, spec in quantization["layers"].items():
        size = sizes.get(f"{name}.weight", 0) + sizes.get(f"{name}.weight_scale", 0)
        rows.add_row(
            name,
            "x".join(map(str, spec["shape"])),
            str(spec["bits"]),
            str(spec["group_size"] or "row"),
            input_words(spec["input_bits"], spec["input_mode"], spec.get("rotation", 0)),
            f"tied to {spec['tied_to']}" if spec["tied_to"] else str(size),
        )
    Console(width=max(130, Console().width)).print(rows)
    quant = QuantSection.stored(quantization["quant"])
    if checkpoint.IMAGE not in config:
        print(quant.kv.words(quant.bits()))
    if quant.adaptive.share is not None:
        print(quant.adaptive.words(quant.bits()))
    print(f"{checkpoint.WEIGHTS}: {(folder / checkpoint.WEIGHTS).stat().st_size} bytes")
    metrics = folder / checkpoint.METRICS
    if metrics.is_file():
        try:
            values = json.loads(metrics.read_text(encoding="utf-8"))
            scores = {row: values[row] and next(iter(values[row].items())) for row in ROWS}
            bits = average_words(values["average_bits"])
        except (ValueError, KeyError, TypeError, AttributeError, StopIteration):
            raise FormatError(
                f"metrics.json: '{metrics}' is damaged; copy the folder again"
            ) from None
        for row, score in scores.items():
            if score is not None:
                value = "not a number" if score[1] is None else f"{score[1]:.3f}"
                print(f"{row}: {score[0]} {value}")
        if checkpoint.IMAGE not in config:
            print(bits)
    if verify:
        print(f"verified {len(quantization['sha256']) + 1} files")
