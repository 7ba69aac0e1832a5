"""Options that several verbs share, and how they become overrides of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgeqat.errors import UsageError, nearest
from edgeqat.scheme import GROUP_MULTIPLE

RecipeOption = Annotated[
    str | None, typer.Option("--recipe", help="YAML file or shipped name (see `edgeqat recipes`).")
]
DataOption = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="Text file or folder (.txt, .md, .jsonl, .json, .csv, .tsv, .parquet), `self` (the "
        "model writes it), or folder of images; else EDGEQAT_DATA.",
    ),
]
TextsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        help="Text, chats (.txt, .jsonl, ...; a folder), `self` (the model writes it), or images; "
        "else EDGEQAT_DATA. Repeated: a mix; FILE=0.3 is a share.",
    ),
]
StepsOption = Annotated[int | None, typer.Option("--steps", help="Optimizer steps.")]
SeedOption = Annotated[int | None, typer.Option("--seed", help="Seed of order and sampling.")]
OutputOption = Annotated[str | None, typer.Option("--output", help="Folder to write.")]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace a folder that edgeqat wrote.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a recipe field: a.b=value. Repeatable."),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option("--threads", min=1, max=1024, help="Threads; default: physical cores."),
]
TemperatureOption = Annotated[
    float,
    typer.Option("--temperature", min=0.0, help="0 takes the likeliest token; above, sample."),
]
TopKOption = Annotated[
    int, typer.Option("--top-k", min=0, help="Sample from the K likeliest tokens; 0: from all.")
]
TopPOption = Annotated[
    float,
    typer.Option("--top-p", min=0.0, max=1.0, help="Sample from the likeliest share P; 1: all."),
]
SamplingSeedOption = Annotated[
    int, typer.Option("--seed", min=0, max=2**32 - 1, help="Seed of sampling.")
]

CoresetOption = Annotated[
    str | None,
    typer.Option("--coreset", help="Share of the samples to train on, e.g. 0.01, or a JSON file."),
]


def coreset(given: str | None) -> dict[str, Any]:
    """The overrides that `--coreset` stands for: a share, or a file of `edgeqat coreset`."""
    if given is None:
        return {}
    try:
        return {"coreset.share": float(given), "coreset.file": None}
    except ValueError:
        return {"coreset.file": given}


def overrides(entries: list[str] | None, **given: Any) -> dict[str, Any]:
    """Overrides {"a.b": value} from --set entries and short flags; what is not given is absent."""
    from edgeqat.data.sources import SELF
    from edgeqat.recipe import files as recipes

    values = {key.replace("__", "."): value for key, value in given.items() if value is not None}
    root = values.get("data.root")
    if isinstance(root, list):
        values["data.root"], *others = root
        if others:
            values["data.mix"] = dict(_share(name, 1 / len(root)) for name in others)
    if values.get("data.root") == SELF:
        values["data.train"] = values.pop("data.root")
    return {**dict(recipes.parse_set(entry) for entry in entries or []), **values}


def _share(given: str, equal: float) -> tuple[str, float]:
    """A text of a mix and its share, of `NAME` or `NAME=SHARE`."""
    name, mark, share = given.rpartition("=")
    try:
        return (name, float(share)) if mark and not Path(given).exists() else (given, equal)
    except ValueError:
        return given, equal


def target_values(target: str) -> dict[str, Any]:
    """What `--target` sets: `gguf` trains on the numbers that llama.cpp computes with."""
    targets: dict[str, dict[str, Any]] = {
        "native": {},
        "gguf": {
            "quant.weight.group_size": GROUP_MULTIPLE,
            "quant.activation.mode": "q8_0",
            "quant.activation.rotate": [],
            "quant.kv.sink_tokens": 0,
            "quant.kv.rotate_keys": False,
            "quant.kv.key_offset": False,
            "quant.kv.llama_cpp": True,
        },
    }
    if target not in targets:
        raise UsageError(f"target: '{target}' is unknown; {nearest(target, list(targets))}")
    return targets[target]
