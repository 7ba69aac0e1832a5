"""What a stage trains on and towards: the training data, and the objective with its teacher.

The teacher runs in every step; or, with `distill.kept`, it has said before what it makes of the
blocks that the stage will see. Then the float model leaves memory until it is asked for again.
"""

from __future__ import annotations

import torch
from torch import nn

from edgeqat.coreset.float_outputs import check_room, float_outputs
from edgeqat.coreset.samples import BlockSamples
from edgeqat.data.images import Images
from edgeqat.data.text import Blocks, BlockStream
from edgeqat.hf import float_model
from edgeqat.nn.half import narrow
from edgeqat.nn.precision import uses_bf16
from edgeqat.pipeline.task import Task
from edgeqat.pipeline.text_task import TextTask, needs_teacher
from edgeqat.recipe.recipe import Recipe
from edgeqat.train import processes
from edgeqat.train.objective import Objective


def teaching(
    task: Task, recipe: Recipe, keep_exact: bool = False
) -> tuple[Blocks | BlockStream | Images, Objective]:
    """Data and objective of a stage of `train.steps` steps; with `keep_exact` the float model stays
    what others are compared with, and keeps its precision.
    """
    if recipe.distill.kept is not None:
        assert isinstance(task, TextTask)
        return _from_kept_outputs(task, recipe, recipe.distill.kept)
    teacher = None
    if needs_teacher(recipe):
        teacher = task.teacher or task.model  # the float model is not trained any more
        if uses_bf16(recipe.train.bf16, teacher) and not keep_exact:
            narrow(teacher)
    return task.train, task.objective(recipe, teacher)


def _from_kept_outputs(task: TextTask, recipe: Recipe, kept: int) -> tuple[Blocks, Objective]:
    """Numbered blocks, as many as the steps take, and an objective of the teacher's outputs."""
    blocks = task.train
    assert isinstance(blocks, Blocks), "load_text refuses streams"
    if not recipe.coreset.is_on:  # which chooses from all of them
        train = recipe.train
        of_step = train.batch_size * train.accumulation * processes.count()
        blocks = blocks.evenly(max(train.steps * of_step, 1))
    task.bring_back()
    teacher = task.teacher or task.model
    nn.Module.to(teacher, processes.device())
    bf16 = uses_bf16(recipe.train.bf16, teacher)
    vocabulary = task.model.config.vocab_size
    samples = BlockSamples(blocks, vocabulary)
    name, weights = recipe.model.name, recipe.model.weights
    if recipe.distill.teacher is not None:
        name, weights = recipe.distill.teacher, None
    key = f"{float_model.fingerprint(name, weights)} {vocabulary} {'bf16' if bf16 else 'float32'}"
    check_room(samples, key, kept, recipe.data.context, vocabulary)
    with torch.autocast(teacher.device.type, torch.bfloat16, enabled=bf16):
        outputs = float_outputs(teacher, samples, key, kept, on_disk=True)
    task.release()
    objective = Objective(recipe.distill, None, recipe.guide, outputs=outputs)
    return blocks.numbered(), objective
