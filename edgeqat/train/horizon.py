"""How long a training stage is: passes over data as steps."""

from __future__ import annotations

from typing import Any

from edgeqat.data.text import BlockStream
from edgeqat.errors import UsageError
from edgeqat.recipe.recipe import Recipe
from edgeqat.train import processes


def in_steps(recipe: Recipe, data: Any, chosen: int | None = None) -> Recipe:
    """The recipe with `train.epochs` as steps: passes over data, or over as many as are chosen."""
    train = recipe.train
    if train.epochs is None:
        return recipe
    if isinstance(data, BlockStream):
        raise UsageError(
            f"train.epochs: {train.epochs:g} passes over a stream have no end; set train.steps"
        )
    count = chosen or len(data)
    per_pass = -(-count // (train.batch_size * processes.count()))
    steps = round(train.epochs * -(-per_pass // train.accumulation))
    return recipe.model_copy(
        update={"train": train.model_copy(update={"steps": steps, "epochs": None})}
    )
