"""The model that training starts from: fake-quantized, calibrated, with what the recipe trains."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import set_seed

from edgeqat import checkpoint
from edgeqat.hf.model import prepare
from edgeqat.nn import compensation
from edgeqat.nn.calibration import calibrate
from edgeqat.nn.half import float_copy
from edgeqat.nn.lowrank import add_adapters
from edgeqat.output import whole_file
from edgeqat.pipeline.run import Run
from edgeqat.pipeline.task import Score, Task
from edgeqat.quant.quantizer import Quantizer
from edgeqat.recipe.quant import QuantSection
from edgeqat.recipe.recipe import Recipe
from edgeqat.train import processes

_START = "start.safetensors"


def prepared(task: Task, recipe: Recipe, quant: QuantSection) -> Any:
    """A copy of the float model, fake-quantized and calibrated, not trained."""
    return _calibrated(fake_quantized(task, quant), task, recipe)


def start_of(run: Run, task: Task, recipe: Recipe) -> Any:
    """The model that training starts from; its compensated weights are kept in the run folder, so
    that a continued run does not compute them again.
    """
    file, model = run.folder / _START, fake_quantized(task, recipe.quant)
    waiting = compensation.waiting(model)
    if processes.broadcast_from_first(file.is_file):
        load_state(model, file)
        for layer in waiting:
            compensation.set_rounded(layer)
        return model
    _calibrated(model, task, recipe)
    if processes.is_first() and waiting and recipe.train.save_steps > 0:
        keep_state(model, file)
    return model


def _calibrated(model: Any, task: Task, recipe: Recipe) -> Any:
    set_seed(recipe.seed)  # calibration samples: a continued run must draw what the first one drew
    calibrate(model, task.calibration(recipe), recipe.train.blocks)
    return model


def fake_quantized(task: Task, quant: QuantSection) -> Any:
    """A copy of the float model, fake-quantized and not calibrated."""
    gc.collect()  # a prepared model before this one refers to itself
    task.bring_back()
    return prepare(float_copy(task.model), quant=quant)


def keep_state(model: nn.Module, file: Path) -> None:
    """Write all parameters and buffers, those too that a folder does not hold."""
    with whole_file(file) as part:
        checkpoint.write_tensors(part, _state(model))


@torch.no_grad()
def load_state(model: nn.Module, file: Path) -> None:
    """Read into a model what keep_state() wrote of one like it."""
    tensors = _state(model)
    for name, tensor in checkpoint.read_tensors(file).items():
        tensors[name].copy_(tensor)


def _state(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, tied ones once."""
    tensors: dict[int, tuple[str, Tensor]] = {}
    every = {**model.state_dict(keep_vars=True), **dict(model.named_buffers())}
    for name, tensor in every.items():
        tensors.setdefault(id(tensor), (name, tensor.detach()))
    return dict(tensors.values())


def trainable(model: Any, recipe: Recipe) -> Any:
    """The prepared model with what the recipe's method trains: everything, adapters in place, or
    scales and vectors (norms, biases).
    """
    if not recipe.train.embedding:
        freeze_embedding(model)
    if recipe.train.method == "scales":
        freeze_weights(model)
    if recipe.train.method == "lowrank":
        set_seed(recipe.seed)  # adapters: the float row before them may have been there already
        add_adapters(model, recipe.train.lowrank)
    return model


def freeze_embedding(model: Any) -> None:
    """Leave embedding and head of a language model as they are, in training."""
    if hasattr(model, "get_output_embeddings"):
        for part in (model.get_input_embeddings(), model.get_output_embeddings()):
            if part is not None:
                part.requires_grad_(False)


def freeze_weights(model: nn.Module) -> None:
    """Leave matrices as they are, in training; their scales go on."""
    quantizers = (module for module in model.modules() if isinstance(module, Quantizer))
    scales = {id(scale) for quantizer in quantizers for scale in quantizer.scale_parameters()}
    for parameter in model.parameters():
        if parameter.ndim >= 2 and id(parameter) not in scales:
            parameter.requires_grad_(False)


def format_score(score: Score) -> str:
    """A score in words, for example `perplexity 68.540`."""
    return ", ".join(f"{name} {value:.3f}" for name, value in score.items())
