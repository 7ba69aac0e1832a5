"""Which samples a training stage runs over, and for how long: the recipe's section `coreset` and
`train.epochs`.
"""

from __future__ import annotations

import logging
import time

from torch import nn
from transformers import set_seed

from edgeqat.coreset import index_file
from edgeqat.coreset.float_outputs import float_outputs
from edgeqat.coreset.reselection import Reselection
from edgeqat.coreset.selection import Selection, needs_outputs
from edgeqat.hf import float_model
from edgeqat.nn.calibration import calibrate
from edgeqat.nn.switch import quantizers_disabled
from edgeqat.pipeline.task import Task
from edgeqat.quant.lsq import StaticQuantizer
from edgeqat.recipe.recipe import Recipe
from edgeqat.train.horizon import in_steps
from edgeqat.train.optim import with_rates

logger = logging.getLogger(__name__)

FROM_SCRATCH = 1.0  # nats: everything is still to learn


def with_steps(recipe: Recipe, task: Task) -> Recipe:
    """The recipe with `train.epochs` as steps: passes over the data, or over the coreset. Refuses
    a coreset that the data cannot give.
    """
    section = recipe.coreset
    chosen = None
    if section.file is not None:
        samples = task.samples(recipe)
        chosen = len(index_file.read(section.file, len(samples), samples.fingerprint()))
    elif section.is_on:
        chosen = Selection(section, task.samples(recipe), task.model, recipe.seed).count
    return in_steps(recipe, task.train, chosen)


def recalibrate_batch_norms(task: Task, recipe: Recipe, student: nn.Module) -> bool:
    """Batch norms estimated anew before training (`coreset.norm_images`); static activation scales,
    which were found on what the norms made of other weights, are found again between two estimates.
    Whether there are such norms.
    """
    samples = task.samples(recipe)
    with quantizers_disabled(student, (StaticQuantizer,)):
        settled = samples.recalibrate_batch_norms(student)
    if settled and any(isinstance(module, StaticQuantizer) for module in student.modules()):
        set_seed(recipe.seed)  # a continued run draws what the first one drew
        calibrate(student, task.calibration(recipe))
        samples.recalibrate_batch_norms(student)
    return settled


def coreset_of(task: Task, recipe: Recipe, student: nn.Module) -> tuple[Reselection | None, float]:
    """What chooses the samples of the student's training (None: all are used), and the seconds that
    what precedes every selection took.
    """
    section = recipe.coreset
    if not section.is_on:
        return None, 0.0
    samples = task.samples(recipe)
    if section.file is not None:
        index = index_file.read(section.file, len(samples), samples.fingerprint())
        logger.info(
            "coreset: %d of %d samples, those of '%s' in every pass (share, selector and every of "
            "the recipe are for selections)",
            len(index), len(samples), section.file,
        )  # fmt: skip
        return Reselection(section, index, recipe.seed), 0.0
    selection, seconds = selection_of(task, recipe, student)
    return Reselection(section, selection, recipe.seed), seconds


def selection_of(task: Task, recipe: Recipe, student: nn.Module) -> tuple[Selection, float]:
    """The recipe's selection over the training data, and the seconds that the float model's outputs
    or the trial of `forgetting` took.
    """
    samples = task.samples(recipe)
    selection = Selection(recipe.coreset, samples, task.model, recipe.seed)
    if needs_outputs(recipe.coreset):
        key = float_model.fingerprint(recipe.model.name, recipe.model.weights)
        selection.outputs = float_outputs(task.model, samples, key, recipe.coreset.kept_classes)
        selection.teacher = None  # who may be sent away
        return selection, selection.outputs.seconds
    start = time.perf_counter()
    if recipe.coreset.selector == "forgetting":
        from edgeqat.coreset.forgetting import forgetting_scores  # it trains

        train = with_rates(recipe.train, FROM_SCRATCH)
        trial = recipe.model_copy(update={"train": train})
        objective = task.objective(trial, None)
        selection.fixed = forgetting_scores(student, task.train, samples, objective, trial)
    return selection, time.perf_counter() - start
