"""`edgeqat train`: float models from a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeqat import log
from edgeqat.cli import options
from edgeqat.cli.progress import training_progress

EXAMPLES = (
    "edgeqat train --recipe demo-float --output float",
    "edgeqat train --recipe llama-58m-float --data TEXT --steps 2000",
)


def command(
    recipe: Annotated[
        str, typer.Option("--recipe", help="YAML file or shipped name of a float model.")
    ],
    data: options.DataOption = None,
    steps: options.StepsOption = None,
    seed: options.SeedOption = None,
    output: options.OutputOption = None,
    overwrite: options.OverwriteOption = False,
    settings: options.SetOption = None,
) -> None:
    """Train a float model from scratch.

    The folder written is a Hugging Face model, or holds the --weights of an image classifier.
    """
    from edgeqat.recipe import files as recipes

    values = options.overrides(settings, data__root=data, train__steps=steps, seed=seed)
    resolved = recipes.load(recipe, values)
    target = Path(Path(recipe).stem if output is None else output)
    from edgeqat.memory import keep_freed_memory

    log.setup()
    keep_freed_memory()  # before torch is imported
    from edgeqat.pipeline import start

    start.check_start(target, overwrite)
    start.check_makes_float(resolved)
    from edgeqat.pipeline.image_task import is_image_model
    from edgeqat.pipeline.pretrain import pretrain

    keep_freed_memory(of_any_size=is_image_model(resolved.model.name))
    with training_progress() as listener:
        metrics = pretrain(resolved, target, overwrite, listener)
    if log.is_main_process():
        score = ", ".join(f"{name} {value:.3f}" for name, value in metrics["float"].items())
        print(f"{score} on {metrics['evaluation']}")
        print(f"wrote {target}")
