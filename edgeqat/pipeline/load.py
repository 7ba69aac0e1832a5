"""A recipe's task: which kind of model and data it names, loaded and checked against each other."""

from __future__ import annotations

import os
from pathlib import Path

from edgeqat import checkpoint
from edgeqat.data.rows import is_read
from edgeqat.data.sources import ROOT_VARIABLE, is_below
from edgeqat.errors import RecipeError, UsageError
from edgeqat.hf import image_folder
from edgeqat.pipeline import image_task
from edgeqat.pipeline.places import absolute
from edgeqat.pipeline.task import Task
from edgeqat.pipeline.text_task import TextTask, load_text
from edgeqat.recipe.recipe import Recipe


def with_data_root(recipe: Recipe) -> Recipe:
    """The recipe with its data root from EDGEQAT_DATA when none is given, and the text it names is
    not of another place (the demo, a dataset of the hub, an absolute path); local places are
    absolute then.
    """
    data, root = recipe.data, os.environ.get(ROOT_VARIABLE)
    images = image_task.is_image_model(recipe.model.name)
    if data.root is None and root and (images or not _is_elsewhere(data.train, Path(root))):
        data = data.model_copy(update={"root": root})
    return absolute(recipe.model_copy(update={"data": data}))


def _is_elsewhere(name: str | None, root: Path) -> bool:
    if name is None or (is_read(name) and not Path(name).is_absolute()):
        return False
    return not is_below(root.expanduser(), name)


def task_of_folder(folder: Path) -> type[Task]:
    """The kind of task that a packed folder was made by."""
    config = checkpoint.read_config(folder)
    return image_task.ImageTask if image_folder.is_image_folder(config) else TextTask


def load_task(recipe: Recipe) -> Task:
    """Load and cross-check everything a run needs; seeds every generator first."""
    if recipe.architecture is not None:
        raise RecipeError(
            "architecture: the recipe makes a float model; use it with `edgeqat train`, then "
            "quantize the folder it wrote"
        )
    if recipe.quant.bits().is_float:
        raise UsageError(
            "scheme: w16a16kv16 leaves everything in float; write for example --w4a8kv4"
        )
    if image_task.is_image_model(recipe.model.name):
        return image_task.load_classifier(recipe)
    return load_text(recipe)
