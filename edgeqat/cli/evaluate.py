"""`edgeqat eval`: is what is served what was trained, how far is it from the float model, and what
does it score on lm-eval's tasks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgeqat import log
from edgeqat.cli import suite_page
from edgeqat.errors import UsageError
from edgeqat.scheme import average_words

_TASKS, _TEXT = "tasks", "held-out text"
CHAT = "chat"

EXAMPLES = (
    "edgeqat eval demo-w4a8kv4 --against demo",
    "edgeqat eval FOLDER --tasks blimp --data-root DATA --limit 50 --output blimp.json",
)


def command(
    folder: Annotated[
        str,
        typer.Argument(help="Packed folder; with --tasks --backend float a float model too."),
    ],
    tasks: Annotated[
        str | None,
        typer.Option(
            "--tasks", help="lm-eval's, e.g. blimp,gsm8k, or chat; without: held-out text."
        ),
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option(
            "--backend",
            help="float, fake-quant, packed (integers) or native. [fake-quant; of chat and "
            "--suite native]",
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", help="JSON file to write.")] = None,
    data_root: Annotated[
        str | None,
        typer.Option("--data-root", help="Folder of the tasks' data; else EDGEQAT_DATA, the hub."),
    ] = None,
    limit: Annotated[
        float | None,
        typer.Option("--limit", min=0, help="Examples of each task; below 1: a share of them."),
    ] = None,
    num_fewshot: Annotated[
        int | None, typer.Option("--num-fewshot", min=0, help="Examples before each question.")
    ] = None,
    gen_kwargs: Annotated[
        str | None, typer.Option("--gen-kwargs", help="Of generating tasks: max_gen_toks=64,...")
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Tasks' prompts go through the model's chat template.")
    ] = False,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="Sequences at once, torch. [64]")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option("--max-length", help="Tokens of a sequence. [the model's]")
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option(
            "--suite", help="small: positions, needles, chat, tasks beside --against, on one page."
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, max=1024, help="Threads; default: all cores.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="Text file, as a whole; folder of text, its held-out part (.txt, .md, .jsonl, "
            ".json, .csv, .tsv, .parquet); folder of images; else EDGEQAT_DATA.",
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option("--against", help="Float model: alias, local folder, GGUF file or hub id."),
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option("--mode", help="one-pass, decode (the cache) or both. [both]"),
    ] = None,
    blocks: Annotated[
        int | None, typer.Option("--blocks", min=0, help="Held-out blocks, evenly spaced; 0: all.")
    ] = None,
    exact: Annotated[
        bool | None,
        typer.Option(
            "--exact/--float32",
            help="Multiply in float64, so that rounding adds nothing. [--exact]",
        ),
    ] = None,
) -> None:
    """Score a model: perplexity, agreement, accuracy or tasks.

    With --tasks: scores of lm-eval's tasks. Without: perplexity in one pass and token by token
    through the KV cache; KL, top token and error of each layer against a float model. Of an image
    classifier: top-1 and top-5.
    """
    log.setup()
    text: dict[str, Any] = {
        "data": data, "against": against, "mode": mode, "blocks": blocks, "exact": exact
    }  # fmt: skip
    scored: dict[str, Any] = {
        "data_root": data_root, "limit": limit, "batch_size": batch_size, "max_length": max_length,
        "num_fewshot": num_fewshot, "gen_kwargs": gen_kwargs, "chat": chat or None,
    }  # fmt: skip
    if suite is not None:
        _suite(folder, suite, output, threads, backend, {**text, **scored, "tasks": tasks})
        return
    if tasks == CHAT:
        _chat(folder, output, threads, backend, {**text, **scored})
        return
    backend = backend or "fake-quant"
    if tasks is not None:
        _refuse(text, f"is for {_TEXT}; leave out --tasks or this option")
        from edgeqat.harness.run import evaluate_tasks

        scored["chat"] = chat
        names = [name.strip() for name in tasks.split(",") if name.strip()]
        _, printed = evaluate_tasks(folder, names, backend, output, threads=threads, **scored)
        print(printed)
    else:
        _refuse(scored, "is for tasks; add --tasks NAMES or leave it out")
        from edgeqat.pipeline.evaluate import evaluate

        given = {name: value for name, value in text.items() if value is not None}
        with log.console().status("evaluating"):
            result = evaluate(Path(folder), backend, output, threads=threads, **given)
        for line in _image_lines(result) if "top1" in result else _lines(result):
            print(line)
    if output is not None:
        print(f"wrote {output}")


def _suite(
    folder: str,
    suite: str,
    output: Path | None,
    threads: int | None,
    backend: str | None,
    given: dict[str, Any],
) -> None:
    against, data, root = (given.pop(name) for name in ("against", "data", "data_root"))
    if against is None:
        raise UsageError("against: a suite compares with the float model; add --against FLOAT")
    _refuse(given, "is not for a suite; leave it out")
    from edgeqat.pipeline.suite import evaluate_suite

    result = evaluate_suite(Path(folder), against, suite, output, threads, data, root, backend)
    for line in suite_page.lines(result):
        print(line)
    if output is not None:
        print(f"wrote {output}")


def _chat(
    folder: str,
    output: Path | None,
    threads: int | None,
    backend: str | None,
    given: dict[str, Any],
) -> None:
    against = given.pop("against")
    if against is None:
        raise UsageError("against: 'chat' compares with the float model; add --against FLOAT")
    _refuse(given, "is not for the task 'chat'; leave it out")
    from edgeqat.pipeline.evaluate import evaluate_chat

    result = evaluate_chat(Path(folder), against, output, threads, backend)
    print(
        f"{result['model']} at {result['scheme']}, {result['prompts']} prompts, answers of at most "
        f"{result['new_tokens']} tokens"
    )
    for line in suite_page.chat(result):
        print(line)
    if output is not None:
        print(f"wrote {output}")


def _refuse(given: dict[str, Any], reason: str) -> None:
    for name, value in given.items():
        if value is not None:
            raise UsageError(f"{name.replace('_', '-')}: '{value}' {reason}")


def _image_lines(result: dict[str, Any]) -> list[str]:
    evaluation = result["evaluation"]
    lines = [
        f"{result['model']} at {result['scheme']}, {evaluation['images']} images of "
        f"{evaluation['size']} pixels a side",
        f"top-1 {result['top1']:.2f}%, top-5 {result['top5']:.2f}%",
    ]
    if result["against"] is not None:
        other = result["against"]
        lines.append(
            f"the float model: top-1 {other['top1']:.2f}%, top-5 {other['top5']:.2f}%; the same "
            f"class in {other['same_top']:.2f}%"
        )
    return lines


def _lines(result: dict[str, Any]) -> list[str]:
    evaluation = result["evaluation"]
    lines = [
        f"{result['model']} at {result['scheme']}, {result['backend']}, "
        f"{evaluation['blocks']} blocks of {evaluation['context']} tokens",
    ]
    for name, value in result["perplexity"].items():
        if value is not None:
            lines.append(f"perplexity {name.replace('_', ' ')}: {value:.3f}")
    if result["same_top"] is not None:
        lines.append(
            f"decoding and one pass agree on {100 * result['same_top']:.2f}% of top tokens "
            f"({100 * result['ties']:.2f}% are ties)"
        )
    if result["against"] is not None:
        lines.append(f"perplexity of the float model: {result['against']['perplexity']:.3f}")
        lines.append(
            f"KL to it: mean {result['kl']['mean']:.4f}, p99 {result['kl']['p99']:.4f} nats; "
            f"same top token {100 * result['same_top_float']:.2f}%"
        )
    if result["layers"] is not None:
        errors = " ".join(f"{100 * layer['error']:.3g}" for layer in result["layers"])
        lines.append(f"output error of its layers in % of their power: {errors}")
    if result["average_bits"] is not None:
        lines.append(average_words(result["average_bits"]))
    return lines
