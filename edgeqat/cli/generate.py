"""`edgeqat generate`: text from a packed folder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from edgeqat import log
from edgeqat.cli.options import (
    SamplingSeedOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
)
from edgeqat.errors import UsageError

EXAMPLES = (
    "edgeqat generate demo-w4a8kv4 --prompt 'The import statement'",
    "edgeqat generate FOLDER --chat --file question.txt --temperature 0.8 --top-p 0.9",
)


def command(
    folder: Annotated[Path, typer.Argument(help="Packed folder.")],
    prompt: Annotated[str | None, typer.Option("--prompt", help="Text to continue.")] = None,
    file: Annotated[
        Path | None, typer.Option("--file", help="File of the text to continue; -: stdin.")
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="The text is a question to a chat model.")
    ] = False,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="New tokens.")] = 64,
    temperature: TemperatureOption = 0.0,
    top_k: TopKOption = 0,
    top_p: TopPOption = 1.0,
    seed: SamplingSeedOption = 0,
    engine: Annotated[
        str, typer.Option("--engine", help="native (C++ kernels) or torch (the reference).")
    ] = "native",
) -> None:
    """Continue a prompt and stream the text to stdout."""
    log.setup()
    if (prompt is None) == (file is None):
        given = "both are given" if prompt is not None else "neither is given"
        raise UsageError(f"prompt, file: {given}; write --prompt TEXT or --file FILE")
    text = prompt if prompt is not None else _read(file or Path())
    from edgeqat.pipeline.generate import generate

    sampling = (temperature, top_k, top_p, seed)
    for piece in generate(folder, text, max_tokens, *sampling, engine, chat):
        print(piece, end="", flush=True)
    print()


def _read(file: Path) -> str:
    """A file's text without the line break at its end; a prompt rarely means it."""
    try:
        raw = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
        return raw.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except OSError as error:
        raise UsageError(f"file: '{file}' cannot be read ({error.strerror}); name a file") from None
    except UnicodeDecodeError:
        raise UsageError(f"file: '{file}' is not UTF-8 text; convert it first") from None
