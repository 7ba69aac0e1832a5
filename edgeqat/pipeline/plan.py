"""The dry run: the per-layer table and predicted bytes, from shapes alone; where it is to measure,
also the time of a step, and one full pack-and-reload of the untrained model.

Everything that can fail late fails here: data, output place, teacher, and measured also packing and
loading.
"""

from __future__ import annotations

import copy
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgeqat.checkpoint import WEIGHTS, check_output, file_bytes
from edgeqat.coreset.select import size
from edgeqat.data.documents import DEMO
from edgeqat.errors import FormatError
from edgeqat.hf import packed_folder
from edgeqat.hf.model import prepare
from edgeqat.hf.stored import float_size, stored_tensors
from edgeqat.nn import convert, residual
from edgeqat.nn.decision import Decision, decisions, layers
from edgeqat.nn.layers import attentions
from edgeqat.pipeline.load import load_task, with_data_root
from edgeqat.pipeline.preparation import prepared, trainable
from edgeqat.pipeline.sampling import with_steps
from edgeqat.pipeline.self_text import file_of, with_self_text, writes_text
from edgeqat.pipeline.speed import step_seconds
from edgeqat.pipeline.start import check_extras
from edgeqat.pipeline.task import Task
from edgeqat.pipeline.widths import with_widths
from edgeqat.recipe.recipe import Recipe
from edgeqat.scheme import FLOAT_BITS, input_words


@dataclass
class Plan:
    """Rows of the per-layer table and the lines below it."""

    rows: list[tuple[str, ...]]
    lines: list[str]
    total_bytes: int
    seconds: float | None  # None: not measured


def plan(recipe: Recipe, output: Path, overwrite: bool = False, measured: bool = False) -> Plan:
    """Check a run without training: raises what the run would raise, writes nothing that stays."""
    check_output(output, overwrite)
    check_extras(recipe)
    recipe, told = _with_known_text(with_data_root(recipe))
    task = load_task(recipe)
    recipe = with_widths(with_steps(recipe, task), task)
    chosen = decisions(task.model, recipe.quant)
    last = ["add --measure for the time of training and a trial of packing and loading"]
    seconds = None
    if measured:
        model = trainable(prepared(task, recipe, recipe.quant), recipe)
        seconds = recipe.train.steps * step_seconds(copy.deepcopy(model), task, recipe)
        convert.convert(model)
        with tempfile.TemporaryDirectory(prefix="edgeqat-") as name:
            task.write(Path(name), model, recipe.quant)
            _check_equal(model, packed_folder.load(name), task)
        last = [
            f"predicted QAT time: {seconds:.0f} s for {recipe.train.steps} steps on this machine"
            + (", and about half as much for the float row" if recipe.train.compare_float else ""),
            "packed, reloaded and compared: equal; nothing was kept",
        ]
    else:
        model = _shapes(task, recipe)
    size = file_bytes(stored_tensors(model))
    packed = dict(layers(model))
    rows = [_row(name, layer, d, packed[name]) for name, layer, d in chosen]
    quant, scheme = recipe.quant, recipe.quant.bits()
    lines = [
        *told,
        *([quant.kv.words(scheme)] if any(attentions(task.model)) else []),
        *(["the residual stream is rotated"] if residual.is_rotated(model) else []),
        *_coreset_lines(recipe, task),
        *([quant.adaptive.words(scheme)] if quant.adaptive.share is not None else []),
        f"predicted size: {size} bytes in {WEIGHTS} (fp16: {float_size(task.model)['fp16']} bytes)",
        *last,
    ]
    return Plan(rows, lines, size, seconds)


def _with_known_text(recipe: Recipe) -> tuple[Recipe, list[str]]:
    """The recipe with text that is there, and what a run would write first."""
    if not writes_text(recipe) or file_of(recipe).is_file():
        return with_self_text(recipe), []
    data = recipe.data.model_copy(update={"train": DEMO, "valid": None})
    line = f"text: the model writes about {data.self_tokens} tokens first (looked at on other text)"
    return recipe.model_copy(update={"data": data}), [line]


def _shapes(task: Task, recipe: Recipe) -> nn.Module:
    """The packed model without values."""
    empty: dict[int, Any] = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad)
        for p in task.model.parameters()
    }
    model: Any = copy.deepcopy(task.model, empty)  # nothing is copied, and ties stay
    return convert.convert(prepare(model, quant=recipe.quant))


def _row(name: str, layer: Any, decision: Decision, packed: Any) -> tuple[str, ...]:
    rows, columns = layer.weight.shape[0], layer.weight[0].numel()
    size = sum(
        p.numel() * (4 if p.dtype == torch.float32 else p.element_size())
        for p in packed.parameters()
        if p.requires_grad is False or p.dtype == torch.float32
    )
    tied = getattr(packed, "spec", None) is not None and packed.spec.tied_to
    group = decision.group_size or {"per_tensor": "tensor", "per_channel": "row"}.get(
        decision.granularity, "-"
    )
    inputs = input_words(decision.input_bits, decision.input_mode, decision.rotation)
    note = f"tied to {packed.spec.tied_to}" if tied else decision.reason
    return (
        name,
        f"{rows}x{columns}",
        "-" if tied else "float" if decision.bits == FLOAT_BITS else f"int{decision.bits}",
        str(group if decision.bits < FLOAT_BITS and not tied else "-"),
        inputs,
        "0" if tied else str(size),
        note,
    )


def _coreset_lines(recipe: Recipe, task: Task) -> list[str]:
    section, count = recipe.coreset, len(task.samples(recipe)) if recipe.coreset.is_on else 0
    if section.file is not None:
        return [f"coreset: the samples of '{section.file}'"]
    if section.share is None or not section.is_on:
        return []
    again = f"anew every {section.every} passes" if section.every else "once"
    if section.every_steps is not None:
        again = f"anew every {section.every_steps} steps"
    return [f"coreset: {size(count, section.share)} of {count} by {section.selector}, {again}"]


def _check_equal(model: nn.Module, loaded: nn.Module, task: Task) -> None:
    if not torch.equal(task.outputs(model), task.outputs(loaded)):
        raise FormatError(
            "dry run: the reloaded model differs from the packed one; please report it"
        )
