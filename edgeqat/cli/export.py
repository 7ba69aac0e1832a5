"""`edgeqat export`: a packed folder for another runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from edgeqat import log
from edgeqat.errors import UsageError, nearest
from edgeqat.output import check_file

EXAMPLES = (
    "edgeqat export gguf FOLDER --output model.gguf",
    "edgeqat export compressed-tensors FOLDER --output OUT --drop-kv",
)


def command(
    target: Annotated[str, typer.Argument(help="gguf, compressed-tensors or onnx.")],
    folder: Annotated[Path, typer.Argument(help="Packed folder.")],
    output: Annotated[Path, typer.Option("--output", help="File (gguf, onnx) or folder to write.")],
    requantize: Annotated[
        bool,
        typer.Option("--requantize", help="Round again what the target cannot hold exactly."),
    ] = False,
    drop_kv: Annotated[
        bool,
        typer.Option("--drop-kv", help="compressed-tensors: leave keys and values in float."),
    ] = False,
) -> None:
    """Write a packed folder in the format of another runtime.

    Language models become gguf or compressed-tensors, image classifiers onnx, with their learned
    integers and scales. What the target cannot hold exactly is refused unless --requantize. An onnx
    graph keeps offsets of activations exactly, in float32. With --requantize those of 8-bit
    activations are rounded to zero points, with which runtimes compute in integers.
    """
    log.setup()
    if target not in _TARGETS:
        raise UsageError(f"target: '{target}' is unknown; {nearest(target, list(_TARGETS))}")
    check_file(output, overwrite=False)
    for line in _TARGETS[target](folder, output, requantize, drop_kv):
        print(line)


def _gguf(folder: Path, output: Path, requantize: bool, drop_kv: bool) -> list[str]:
    if drop_kv:
        raise UsageError("drop-kv: it is for compressed-tensors; leave it out")
    from edgeqat.export import gguf

    gguf.check_installed()
    return [*gguf.export(folder, output, requantize), f"wrote {output}"]


def _compressed_tensors(folder: Path, output: Path, requantize: bool, drop_kv: bool) -> list[str]:
    from edgeqat.export import compressed_tensors

    lines = compressed_tensors.export(folder, output, requantize, drop_kv)
    return [*lines, f"wrote {output}"]


def _onnx(folder: Path, output: Path, requantize: bool, drop_kv: bool) -> list[str]:
    if drop_kv:
        raise UsageError("drop-kv: it is for compressed-tensors; leave it out")
    from edgeqat.export import onnx

    onnx.check_installed()
    return [*onnx.export_folder(folder, output, requantize), f"wrote {output}"]


_TARGETS: dict[str, Callable[[Path, Path, bool, bool], list[str]]] = {
    "gguf": _gguf,
    "compressed-tensors": _compressed_tensors,
    "onnx": _onnx,
}
