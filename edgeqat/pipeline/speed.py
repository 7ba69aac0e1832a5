"""The time of one optimizer step on this machine."""

from __future__ import annotations

import time

import torch
from torch import nn

from edgeqat.nn.precision import uses_bf16
from edgeqat.pipeline.task import Task
from edgeqat.pipeline.text_task import needs_teacher
from edgeqat.recipe.recipe import Recipe
from edgeqat.train.optim import make_optimizer, with_rates


def step_seconds(model: nn.Module, task: Task, recipe: Recipe) -> float:
    """Seconds of an optimizer step, measured on one batch of the run's own data; the model takes
    two of them.
    """
    teacher = task.teacher or task.model if needs_teacher(recipe) else None
    objective = task.objective(recipe, teacher)
    optimizer = make_optimizer(model.train(), with_rates(recipe.train, 0.0))
    batch = task.batch(recipe.train.batch_size)
    first = next(iter(batch.values()))
    bf16 = uses_bf16(recipe.train.bf16, model, first.device.type)
    spent = 0.0
    for _ in range(2):  # the first warms up
        start = time.perf_counter()
        with torch.autocast(first.device.type, torch.bfloat16, enabled=bf16):
            loss = objective(model, batch)["loss"]
        loss.backward()
        spent = time.perf_counter() - start
        spent *= recipe.train.accumulation * recipe.train.batch_size / len(first)
        start = time.perf_counter()
        optimizer.step()
        optimizer.zero_grad()
        spent += time.perf_counter() - start
    return spent
