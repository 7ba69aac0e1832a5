"""Which samples a training stage runs over, and for how long: the recipe's section `coreset` and
`train.epochs`.
"""

from __future__ import annotations

import logging

from edgeqat.coreset import index_file
from edgeqat.data.text import BlockStream
from edgeqat.errors import UsageError
from edgeqat.hf import source
from edgeqat.pipeline.task import Task
from edgeqat.recipe import Recipe
from edgeqat.train import processes
from edgeqat.train.float_outputs import float_outputs
from edgeqat.train.reselection import Reselection
from edgeqat.train.selection import Selection, needs_outputs

logger = logging.getLogger(__name__)


def with_steps(recipe: Recipe, task: Task) -> Recipe:
    """The recipe with `train.epochs` as steps: passes over the data, or over the coreset. Refuses
    a coreset that the data cannot give.
    """
    train, section = recipe.train, recipe.coreset
    chosen = None
    if section.file is not None:
        samples = task.samples()
        chosen = len(index_file.read(section.file, len(samples), samples.fingerprint()))
    elif section.is_on:
        chosen = Selection(section, task.samples(), task.model, recipe.seed).count
    if train.epochs is None:
        return recipe
    if isinstance(task.train, BlockStream):
        raise UsageError(
            f"train.epochs: {train.epochs:g} passes over a stream have no end; set train.steps"
        )
    count = chosen or len(task.train)
    per_pass = -(-count // (train.batch_size * processes.count()))
    steps = round(train.epochs * -(-per_pass // train.accumulation))
    return recipe.model_copy(
        update={"train": train.model_copy(update={"steps": steps, "epochs": None})}
    )


def coreset_of(task: Task, recipe: Recipe) -> tuple[Reselection | None, float]:
    """What chooses the samples of a training stage (None: all are used), and the seconds that the
    float model's outputs took.
    """
    section = recipe.coreset
    if not section.is_on:
        return None, 0.0
    samples = task.samples()
    if section.file is not None:
        index = index_file.read(section.file, len(samples), samples.fingerprint())
        logger.info("coreset: %d of %d samples, from '%s'", len(index), len(samples), section.file)
        return Reselection(section, index, recipe.seed), 0.0
    selection, seconds = selection_of(task, recipe)
    return Reselection(section, selection, recipe.seed), seconds


def selection_of(task: Task, recipe: Recipe) -> tuple[Selection, float]:
    """The recipe's selection over the training data, and the seconds its outputs took."""
    samples, outputs = task.samples(), None
    selection = Selection(recipe.coreset, samples, task.model, recipe.seed)
    if needs_outputs(recipe.coreset):
        key = source.fingerprint(recipe.model.name, recipe.model.weights)
        outputs = float_outputs(task.model, samples, key, recipe.coreset.kept_classes)
        selection.outputs = outputs
    return selection, outputs.seconds if outputs else 0.0
