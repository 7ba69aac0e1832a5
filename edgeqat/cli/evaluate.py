"""`edgeqat eval`: is what is served what was trained, and how far is it from the float model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgeqat import log
from edgeqat.cli import options


def command(
    folder: Annotated[Path, typer.Argument(help="Packed folder.")],
    data: options.DataOption = None,
    against: Annotated[
        str | None, typer.Option("--against", help="Float model: alias, local folder or hub id.")
    ] = None,
    mode: Annotated[
        str, typer.Option("--mode", help="both, one-pass (fake-quantized) or decode (the cache).")
    ] = "both",
    blocks: Annotated[
        int | None, typer.Option("--blocks", min=0, help="Held-out blocks, evenly spaced; 0: all.")
    ] = None,
    exact: Annotated[
        bool,
        typer.Option(
            "--exact/--float32", help="Multiply in float64, so that rounding adds nothing."
        ),
    ] = True,
    output: Annotated[Path | None, typer.Option("--output", help="JSON file to write.")] = None,
) -> None:
    """Perplexity in one pass and token by token through the KV cache; KL and top token against a
    float model.
    """
    log.setup()
    from edgeqat.pipeline.evaluate import evaluate

    with log.console().status("evaluating"):
        found = evaluate(folder, data, against, output, mode, blocks, exact)
    for line in _lines(found):
        print(line)
    if output is not None:
        print(f"wrote {output}")


def _lines(found: dict[str, Any]) -> list[str]:
    evaluation, bits = found["evaluation"], found["average_bits"]
    lines = [
        f"{found['model']} at {found['scheme']}, {evaluation['blocks']} blocks of "
        f"{evaluation['context']} tokens",
    ]
    for name, value in found["perplexity"].items():
        if value is not None:
            lines.append(f"perplexity {name.replace('_', ' ')}: {value:.3f}")
    if found["same_top"] is not None:
        lines.append(
            f"decoding and one pass agree on {100 * found['same_top']:.2f}% of top tokens "
            f"({100 * found['ties']:.2f}% are ties)"
        )
    if found["against"] is not None:
        lines.append(f"perplexity of the float model: {found['against']['perplexity']:.3f}")
        lines.append(
            f"KL to it: mean {found['kl']['mean']:.4f}, p99 {found['kl']['p99']:.4f} nats; "
            f"same top token {100 * found['same_top_float']:.2f}%"
        )
    lines.append(f"average bits: activations {bits['activations']:.2f}, KV cache {bits['kv']:.2f}")
    return lines
