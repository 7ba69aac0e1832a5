"""`edgeqat quantize`: the main job."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from edgeqat import log
from edgeqat.aliases import ALIASES, DEMO
from edgeqat.cli import options
from edgeqat.cli.progress import training_progress
from edgeqat.errors import UsageError
from edgeqat.scheme import Scheme, average_words

logger = logging.getLogger(__name__)

MINUTES = 60.0  # of a model without a recipe
EXAMPLES = (
    "edgeqat quantize --model demo --w4a8kv4",
    "edgeqat quantize --model FOLDER --data TEXT --w3a4kv3 --dry-run",
)


def command(
    model: Annotated[
        str | None, typer.Option("--model", help="Alias, local folder, GGUF file or hub id. [demo]")
    ] = None,
    scheme: Annotated[
        str | None,
        typer.Option("--scheme", help="Bits, e.g. w4a8kv4; --w4a8kv4 is the same. [w4a8kv4]"),
    ] = None,
    bits: Annotated[
        float | None,
        typer.Option(
            "--bits", help="Average bits a weight: layers take 2 to 8 by what they lose. [none]"
        ),
    ] = None,
    recipe: options.RecipeOption = None,
    weights: Annotated[
        str | None, typer.Option("--weights", help="safetensors file that replaces the weights.")
    ] = None,
    adaptive: Annotated[
        float | None,
        typer.Option("--adaptive", help="Share of important tokens at 8 bit, e.g. 0.5. [none]"),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option("--target", help="native, or gguf: train on llama.cpp's numbers. [native]"),
    ] = None,
    coreset: options.CoresetOption = None,
    data: options.TextsOption = None,
    minutes: Annotated[
        float | None,
        typer.Option("--minutes", help="Time for the whole run; the rest is chosen for it. [60]"),
    ] = None,
    steps: options.StepsOption = None,
    seed: options.SeedOption = None,
    output: options.OutputOption = None,
    overwrite: options.OverwriteOption = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print the plan, a row per layer; write nothing."),
    ] = False,
    measure: Annotated[
        bool,
        typer.Option("--measure", help="With --dry-run: time a step, and try packing and loading."),
    ] = False,
    settings: options.SetOption = None,
) -> None:
    """Train a model with quantization in the loop and pack it.

    Without --recipe, the shipped recipe named like the model is used if there is one.
    """
    from edgeqat.recipe import files as recipes

    if scheme is not None:
        Scheme.parse(scheme)
    if measure and not dry_run:
        raise UsageError("measure: it belongs to a dry run; add --dry-run")
    chosen = recipe or recipe_of(model)
    values = options.overrides(
        settings, model__name=model, quant__scheme=scheme, model__weights=weights,
        data__root=data, train__steps=steps, train__minutes=minutes, seed=seed,
        quant__adaptive__share=adaptive, quant__average_bits=bits,
    )  # fmt: skip
    values = {**options.target_values(target or "native"), **values}
    from edgeqat.pipeline import start

    if (
        chosen is None
        and values.keys().isdisjoint(recipes.LENGTHS)
        and not start.is_of_images(model or DEMO)
    ):
        values["train.minutes"] = MINUTES
    resolved = _with_text(recipes.load(chosen, {**values, **options.coreset(coreset)}))
    local = Path(resolved.model.name).expanduser()
    local = local.resolve() if local.is_dir() else local
    name = f"{local.name.removesuffix('.gguf')}-{resolved.quant.scheme}"
    if resolved.quant.average_bits is not None:
        name += f"-{resolved.quant.average_bits:g}bits"
    if resolved.quant.adaptive.share is not None:
        name += f"-adaptive{resolved.quant.adaptive.share}"
    place = Path(name if output is None else output)
    from edgeqat.memory import keep_freed_memory

    log.setup()
    if chosen != recipe:
        logger.info("recipe: %s", chosen)
    keep_freed_memory()  # before torch is imported
    from edgeqat.checkpoint import check_output

    (check_output if dry_run else start.check_start)(place, overwrite)
    start.check_extras(resolved)
    start.check_sources(resolved)
    if dry_run:
        from edgeqat.pipeline.plan import plan

        _print_plan(plan(resolved, place, overwrite, measure))
        return
    from edgeqat.pipeline.image_task import is_image_model
    from edgeqat.pipeline.quantize import quantize

    keep_freed_memory(of_any_size=is_image_model(resolved.model.name))
    with training_progress() as listener:
        metrics = quantize(resolved, place, overwrite, listener)
    if log.is_main_process():
        _print_table(metrics, place)


def _with_text(recipe: Any) -> Any:
    """The recipe with text of the model's own, where none is named for a language model."""
    from edgeqat.data.sources import ROOT_VARIABLE, SELF
    from edgeqat.pipeline.start import is_of_images

    named = recipe.data.train or recipe.data.root or os.environ.get(ROOT_VARIABLE)
    if named or is_of_images(recipe.model.name):
        return recipe
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"train": SELF})})


def recipe_of(model: str | None) -> str | None:
    """The shipped recipe of a model that is named by its alias, hub id or folder."""
    from edgeqat.recipe import files as recipes

    aliases = {hub: alias for alias, hub in ALIASES.items()}
    name = aliases.get(model or "", Path(model or DEMO).name)
    if name not in recipes.shipped():
        return None
    shipped = recipes.load(name)
    return name if shipped.model.name == name and not shipped.makes_float else None


def _print_table(metrics: dict[str, Any], target: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from edgeqat.evaluate.metric import metric_of
    from edgeqat.report.card import table

    rows = Table(title=f"{metrics['model']} at {metrics['scheme']}", title_justify="left")
    metric = metric_of(metrics)
    rows.add_column("")
    rows.add_column(metric.name, justify="right")
    rows.add_column("over float", justify="right")
    floating = metrics["float"][metric.name]
    for name, value in table(metrics):
        if value is not None:
            rows.add_row(name, f"{value:.3f}", metric.over_float(value, floating))
    console = Console()
    console.print(rows)
    if metrics["recovered"] is not None:
        print(f"recovered {100 * metrics['recovered']:.1f}% of the PTQ gap ({metric.gap})")
    sizes, trained = metrics["bytes"], metrics["train"]
    kinds = ", ".join(
        f"{kind} {sizes[kind] / 1e6:.2f}" for kind in ("weights", "scales", "embeddings", "other")
    )
    print(f"size {sizes['total'] / 1e6:.2f} MB ({kinds}); fp16 {sizes['fp16'] / 1e6:.2f} MB")
    if not metric.of_images:
        print(average_words(metrics["average_bits"]))
    if "coreset" in metrics:
        coreset = metrics["coreset"]
        print(
            f"coreset: {coreset['size']} of {coreset['samples']}, selected "
            f"{len(coreset['selections']) or 1} times in {trained['selection_seconds']:.0f} s"
        )
    unit = metric.sample
    print(
        f"QAT {trained['steps']} steps in {trained['seconds']:.0f} s, "
        f"{trained[f'{unit}_per_second']:.0f} {unit}/s, peak "
        f"{trained['peak_rss_bytes'] / 1e9:.1f} GB"
    )
    print(f"wrote {target}")


def _print_plan(plan: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    rows = Table(title="plan", title_justify="left")
    for column in ("layer", "shape", "weight", "group", "input", "bytes", "note"):
        rows.add_column(column, justify="right" if column in ("shape", "bytes") else "left")
    for row in plan.rows:
        rows.add_row(*row)
    console = Console(width=max(120, Console().width))
    console.print(rows)
    for line in plan.lines:
        print(line)
