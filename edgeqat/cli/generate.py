"""`edgeqat generate`: text from a packed folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeqat import log

EXAMPLES = (
    "edgeqat generate demo-w4a8kv4 --prompt 'The import statement'",
    "edgeqat generate FOLDER --prompt 'Once upon a time' --temperature 0.8 --top-p 0.9",
)


def command(
    folder: Annotated[Path, typer.Argument(help="Packed folder.")],
    prompt: Annotated[str, typer.Option("--prompt", help="Text to continue.")],
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="New tokens.")] = 64,
    temperature: Annotated[
        float,
        typer.Option("--temperature", min=0.0, help="0 takes the likeliest token; above, sample."),
    ] = 0.0,
    top_k: Annotated[
        int, typer.Option("--top-k", min=0, help="Sample from the K likeliest tokens; 0: from all.")
    ] = 0,
    top_p: Annotated[
        float,
        typer.Option(
            "--top-p", min=0.0, max=1.0, help="Sample from the likeliest share P; 1: all."
        ),
    ] = 1.0,
    seed: Annotated[
        int, typer.Option("--seed", min=0, max=2**32 - 1, help="Seed of sampling.")
    ] = 0,
    engine: Annotated[
        str, typer.Option("--engine", help="native (C++ kernels) or torch (the reference).")
    ] = "native",
) -> None:
    """Continue a prompt and stream the text to stdout."""
    log.setup()
    from edgeqat.pipeline.generate import generate

    sampling = (temperature, top_k, top_p, seed)
    for piece in generate(folder, prompt, max_tokens, *sampling, engine):
        print(piece, end="", flush=True)
    print()
