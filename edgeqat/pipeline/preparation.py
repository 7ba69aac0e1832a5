"""The model that training starts from: fake-quantized, calibrated, with what the recipe trains."""

from __future__ import annotations

import gc
from typing import Any

from transformers import set_seed

from edgeqat.hf.model import prepare
from edgeqat.nn.calibration import calibrate
from edgeqat.nn.half import float_copy
from edgeqat.nn.lowrank import add_adapters
from edgeqat.pipeline.task import Score, Task
from edgeqat.recipe.quant import QuantSection
from edgeqat.recipe.recipe import Recipe


def prepared(task: Task, recipe: Recipe, quant: QuantSection) -> Any:
    """A copy of the float model, fake-quantized and calibrated, not trained."""
    gc.collect()  # a prepared model before this one refers to itself
    set_seed(recipe.seed)  # calibration samples: a continued run must draw what the first one drew
    model: Any = prepare(float_copy(task.model), quant=quant)
    calibrate(model, task.calibration(recipe))
    return model


def trainable(model: Any, recipe: Recipe) -> Any:
    """The prepared model with what the recipe's method trains: everything, or adapters in place."""
    if recipe.train.method == "lowrank":
        set_seed(recipe.seed)  # adapters: the float row before them may have been there already
        add_adapters(model, recipe.train.lowrank)
    return model


def format_score(score: Score) -> str:
    """A score in words, for example `perplexity 68.540`."""
    return ", ".join(f"{name} {value:.3f}" for name, value in score.items())
