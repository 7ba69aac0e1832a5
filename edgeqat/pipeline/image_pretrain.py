"""Float image classifiers from scratch: train what a recipe's `model.name` stands for and write a
folder whose model.safetensors is a `--weights` file with torchvision's keys.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from transformers import set_seed

from edgeqat.checkpoint import CONFIG, METRICS, WEIGHTS, write_tensors
from edgeqat.data.classes import are_named
from edgeqat.errors import DataError
from edgeqat.hf import image_model
from edgeqat.memory import peak_rss_bytes
from edgeqat.output import json_text
from edgeqat.pipeline.image_task import ImageTask, check_recipe, load_both, matched
from edgeqat.pipeline.preparation import format_score
from edgeqat.pipeline.run import check_start, identity, open_run
from edgeqat.pipeline.sampling import FROM_SCRATCH
from edgeqat.recipe import files as recipes
from edgeqat.recipe.files import RESOLVED
from edgeqat.recipe.recipe import Recipe
from edgeqat.train import processes, sharding
from edgeqat.train.callbacks import Listener
from edgeqat.train.horizon import in_steps
from edgeqat.train.optim import with_rates
from edgeqat.train.trainer import QATTrainer

logger = logging.getLogger(__name__)


def pretrain_images(
    recipe: Recipe, output: Path, overwrite: bool = False, listener: Listener | None = None
) -> dict[str, Any]:
    """Train a float classifier and write it to `output`, or continue where the same run stopped;
    returns what its metrics.json holds.
    """
    check_recipe(recipe)
    check_start(output, overwrite)
    set_seed(recipe.seed)
    kind = image_model.named(recipe.model.name).sized(recipe.data.images.size)
    images = load_both(recipe.data, kind)
    if are_named(images[0].names):  # they are the model's classes
        kind = image_model.named(recipe.model.name, len(images[0].names)).sized(kind.size)
    kind, (train, valid) = matched(kind, recipe.data, images)
    inputs = ImageTask(kind.build(), kind, train, valid)
    if not inputs.train.labelled:
        raise DataError("data: the training images have no labels; name labelled ones")
    recipe = in_steps(recipe, inputs.train)
    recipe = recipe.model_copy(update={"train": with_rates(recipe.train, FROM_SCRATCH)})
    model = inputs.model
    parameters = sum(parameter.numel() for parameter in model.parameters())
    logger.info("%.2fM parameters, %s", parameters / 1e6, inputs.describe())
    wanted = identity("train", recipe, "", inputs.train, inputs.valid)
    with open_run(output, overwrite, wanted) as run:
        done = processes.broadcast_from_first(run.metrics)
        if done is not None:
            return done
        trainer = QATTrainer(
            model, recipe, inputs.train, inputs.objective(recipe, None), "float", run.records,
            listener, run.checkpoints("float"),
        )  # fmt: skip
        trainer.run()
        told = trainer.metrics()
        if sharding.is_sharded(model):
            model = sharding.gathered(model, kind.build())
        score = run.result("float", lambda: inputs.evaluate(model))
        logger.info("float: %s", format_score(score))
        metrics: dict[str, Any] = {
            "model": recipe.model.name,
            "data": inputs.source(recipe),
            "seed": recipe.seed,
            "parameters": parameters,
            "float": score,
            "train": {**told, "peak_rss_bytes": peak_rss_bytes()},
            "evaluation": inputs.conditions(recipe),
        }
        if processes.is_first():
            with run.finished(metrics) as folder:
                tensors = {name: t.detach().cpu() for name, t in model.state_dict().items()}
                write_tensors(folder / WEIGHTS, tensors)
                texts = {
                    CONFIG: json.dumps(kind.to_config(), indent=2) + "\n",
                    METRICS: json_text(metrics),
                    RESOLVED: recipes.dump(recipe),
                }
                for name, text in texts.items():
                    (folder / name).write_text(text, encoding="utf-8")
    return metrics
