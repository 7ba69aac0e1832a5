"""`edgeqat coreset`: select the samples worth training on, into a file for `--coreset`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgeqat import log
from edgeqat.cli import options

_BAR = 40

EXAMPLES = (
    "edgeqat coreset --recipe demo --coreset 0.1 --output chosen.json",
    "edgeqat coreset --recipe llama-8m-novels --data NOVELS --coreset 0.5 --output half.json",
)


def command(
    recipe: Annotated[
        str, typer.Option("--recipe", help="YAML file or shipped name (see `edgeqat recipes`).")
    ],
    output: Annotated[Path, typer.Option("--output", help="JSON file to write.")],
    share: Annotated[
        str | None, typer.Option("--coreset", help="Share of the samples to keep, e.g. 0.01.")
    ] = None,
    against: Annotated[
        str | None, typer.Option("--against", help="Another coreset file: print the overlap.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option("--weights", help="safetensors file that replaces the weights.")
    ] = None,
    data: options.DataOption = None,
    seed: options.SeedOption = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
    settings: options.SetOption = None,
) -> None:
    """Score training samples and keep the highest.

    The scores are those of the quantized, untrained model.
    """
    from edgeqat.recipe import files as recipes

    values = options.overrides(settings, data__root=data, seed=seed, model__weights=weights)
    resolved = recipes.load(recipe, {**values, **options.coreset(share)})
    log.setup()
    from edgeqat.pipeline.start import check_sources

    check_sources(resolved)
    from edgeqat.pipeline.coreset import choose

    with log.console().status("selecting"):
        summary = choose(resolved, output, overwrite, against)
    if log.is_main_process():
        for line in _lines(summary):
            print(line)
        print(f"wrote {output}")


def _lines(summary: dict[str, Any]) -> list[str]:
    lines = [
        f"{summary['selected']} of {summary['samples']} samples by {summary['selector']}, "
        f"{summary['seconds']:.1f} s (and {summary['cache_seconds']:.1f} s before it)"
    ]
    for name, title in (("scores", "all"), ("selected_scores", "selected")):
        low, first, middle, third, high = summary[name]["quartiles"]
        lines.append(
            f"scores of {title}: mean {summary[name]['mean']:.4f}, quartiles {low:.4f} "
            f"{first:.4f} {middle:.4f} {third:.4f} {high:.4f}"
        )
    if summary["accuracy"] is not None:
        lines.append(f"accuracy of the scored model over all samples: {summary['accuracy']:.2f}%")
    if "classes" in summary:
        counts = summary["classes"]
        lines.append(_of_classes(counts))
        top = max(counts)
        if min(counts) != top:
            for number, count in enumerate(counts):
                lines.append(f"{number:>5} {count:>6} {'#' * round(_BAR * count / top)}")
    if summary["overlap"] is not None:
        lines.append(f"overlap with the other selection: {100 * summary['overlap']:.1f}%")
    return lines


def _of_classes(counts: list[int]) -> str:
    """How evenly a selection takes from the classes; of some it may take nothing."""
    taken = [count for count in counts if count]
    if len(taken) == 1:
        return f"classes: {taken[0]} samples, all of one class"
    each = f"{min(taken)} to {max(taken)}" if min(taken) < max(taken) else f"{taken[0]}"
    return f"classes: {each} samples of each of the {len(taken)} classes chosen from"
