"""`edgeqat train`: a float model from scratch, a Llama of a recipe's `architecture` or the image
classifier that `model.name` stands for, written as a folder that the other verbs read.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import set_seed

from edgeqat.checkpoint import METRICS
from edgeqat.memory import peak_rss_bytes
from edgeqat.output import write_json
from edgeqat.pipeline.image_task import check_recipe, untrained_classifier
from edgeqat.pipeline.load import with_data_root
from edgeqat.pipeline.preparation import format_score
from edgeqat.pipeline.run import identity, open_run
from edgeqat.pipeline.sampling import FROM_SCRATCH
from edgeqat.pipeline.start import check_makes_float, check_start
from edgeqat.pipeline.text_task import untrained_text
from edgeqat.recipe import files as recipes
from edgeqat.recipe.files import RESOLVED
from edgeqat.recipe.recipe import Recipe
from edgeqat.train import processes, sharding
from edgeqat.train.callbacks import Listener
from edgeqat.train.horizon import in_steps
from edgeqat.train.optim import with_rates

logger = logging.getLogger(__name__)


def pretrain(
    recipe: Recipe, output: Path, overwrite: bool = False, listener: Listener | None = None
) -> dict[str, Any]:
    """Train a float model and write it to `output`, or continue where the same run stopped; returns
    what its metrics.json holds.
    """
    recipe = with_data_root(recipe)
    check_makes_float(recipe)
    of_images = recipe.architecture is None
    if of_images:
        check_recipe(recipe)
    check_start(output, overwrite)
    set_seed(recipe.seed)
    task = untrained_classifier(recipe) if of_images else untrained_text(recipe)
    model = task.model
    parameters = sum(parameter.numel() for parameter in model.parameters())
    logger.info("%.2fM parameters, %s", parameters / 1e6, task.describe())
    recipe = in_steps(recipe, task.train)
    recipe = recipe.model_copy(update={"train": with_rates(recipe.train, FROM_SCRATCH)})
    with open_run(output, overwrite, identity("train", recipe, "", task.train, task.valid)) as run:
        done = processes.broadcast_from_first(run.metrics)
        if done is not None:
            return done
        from edgeqat.train.trainer import QATTrainer  # seconds: not before what may be refused

        trainer = QATTrainer(
            model, recipe, task.train, task.objective(recipe, None), "float", run.records, listener,
            run.checkpoints("float"),
        )  # fmt: skip
        trainer.run()
        trained = trainer.metrics()
        if sharding.is_sharded(model):
            model = sharding.gathered(model, task.untrained(recipe))
        _round(model, task.stored_dtype(recipe))
        score = run.result("float", lambda: task.evaluate(model))
        logger.info("float: %s", format_score(score))
        metrics: dict[str, Any] = {
            "model": recipe.model.name if of_images else recipe.description,
            "data": task.source(recipe),
            "seed": recipe.seed,
            "parameters": parameters,
            "float": score,
            "train": {**trained, "peak_rss_bytes": peak_rss_bytes()},
            "evaluation": task.conditions(recipe),
        }
        if processes.is_first():
            with run.finished(metrics) as folder:
                task.write_float(folder, model, recipe)
                write_json(folder / METRICS, metrics)
                (folder / RESOLVED).write_text(recipes.dump(recipe), encoding="utf-8")
    return metrics


def _round(model: nn.Module, dtype: torch.dtype) -> None:
    """Round the parameters, in place, to what the folder will hold, which is what is measured."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(dtype))
