"""The dry run: the per-layer table, predicted bytes and time, and one full pack-and-reload of the
untrained model.

Everything that can fail late fails here: data, output place, teacher, packing and loading.
"""

from __future__ import annotations

import copy
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgeqat.checkpoint import WEIGHTS, check_output
from edgeqat.data.text import Blocks
from edgeqat.errors import FormatError
from edgeqat.hf import folder as packed_folder
from edgeqat.nn import convert
from edgeqat.nn.decision import Decision, decisions, layers
from edgeqat.pipeline.inputs import Inputs, load_inputs, needs_teacher, with_data_root
from edgeqat.pipeline.quantize import adaptive_line, prepared
from edgeqat.recipe import Recipe
from edgeqat.scheme import FLOAT_BITS, Scheme
from edgeqat.train.objective import Objective
from edgeqat.train.optim import make_optimizer, with_rates


@dataclass
class Plan:
    """Rows of the per-layer table and the lines below it."""

    rows: list[tuple[str, ...]]
    lines: list[str]
    total_bytes: int
    seconds: float


def plan(recipe: Recipe, output: Path, overwrite: bool = False) -> Plan:
    """Check a run without training: raises what the run would raise, writes nothing that stays."""
    check_output(output, overwrite)
    recipe = with_data_root(recipe)
    inputs = load_inputs(recipe)
    found = decisions(inputs.model, recipe.quant)
    model = prepared(inputs, recipe, recipe.quant)
    seconds = recipe.train.steps * _step_seconds(model, inputs, recipe)
    convert.convert(model)
    with tempfile.TemporaryDirectory(prefix="edgeqat-") as name:
        packed_folder.write(Path(name), model, recipe.quant, inputs.tokenizer)
        file = (Path(name) / WEIGHTS).stat().st_size
        _check_equal(model, packed_folder.load(name), inputs)
    sizes = {**packed_folder.size_by_kind(model), **packed_folder.float_size(inputs.model)}
    packed = dict(layers(model))
    rows = [_row(name, layer, d, packed[name]) for name, layer, d in found]
    scheme = recipe.quant.bits()
    lines = [
        _attention_line(recipe, scheme),
        *_adaptive_lines(recipe),
        f"predicted size: {file} bytes in {WEIGHTS} (fp16: {sizes['fp16']} bytes)",
        f"predicted QAT time: {seconds:.0f} s for {recipe.train.steps} steps on this machine"
        + (", and about half as much for the float row" if recipe.train.compare_float else ""),
        "packed, reloaded and compared: equal; nothing was kept",
    ]
    return Plan(rows, lines, file, seconds)


def _row(name: str, layer: Any, decision: Decision, packed: Any) -> tuple[str, ...]:
    rows, columns = layer.weight.shape
    size = sum(
        p.numel() * (4 if p.dtype == torch.float32 else p.element_size())
        for p in packed.parameters()
        if p.requires_grad is False or p.dtype == torch.float32
    )
    tied = getattr(packed, "spec", None) is not None and packed.spec.tied_to
    group = decision.group_size or {"per_tensor": "tensor", "per_channel": "row"}.get(
        decision.granularity, "-"
    )
    inputs = "float"
    if decision.input_bits < FLOAT_BITS:
        inputs = f"{decision.input_mode} {decision.input_bits}"
    if decision.rotation:
        inputs += ", rotated"
    note = f"tied to {packed.spec.tied_to}" if tied else decision.reason
    return (
        name,
        f"{rows}x{columns}",
        "float" if decision.bits == FLOAT_BITS else f"int{decision.bits}",
        str(group if decision.bits < FLOAT_BITS else "-"),
        inputs,
        "0" if tied else str(size),
        note,
    )


def _attention_line(recipe: Recipe, scheme: Scheme) -> str:
    query = "float" if scheme.activation_bits == FLOAT_BITS else f"{scheme.activation_bits} bit"
    if scheme.kv_bits == FLOAT_BITS:
        return f"attention: query {query}, keys and values float"
    cache = recipe.quant.kv
    extras = [f"the first {cache.sink_tokens} tokens at 8 bit"]
    extras += ["q and k rotated"] if cache.rotate_keys else []
    extras += ["keys without their mean"] if cache.key_offset else []
    return (
        f"attention: query {query}, keys and values {scheme.kv_bits} bit per token and head "
        f"({', '.join(extras)})"
    )


def _adaptive_lines(recipe: Recipe) -> list[str]:
    adaptive = recipe.quant.adaptive.share is not None
    return [f"adaptive: {adaptive_line(recipe.quant)}"] if adaptive else []


def _step_seconds(model: nn.Module, inputs: Inputs, recipe: Recipe) -> float:
    """The time of one optimizer step, measured on one batch of the run's own data."""
    teacher = inputs.teacher or inputs.model if needs_teacher(recipe) else None
    objective = Objective(recipe.distill, teacher, recipe.guide)
    trial = copy.deepcopy(model).train()
    optimizer = make_optimizer(trial, with_rates(recipe.train, 0.0))
    blocks = inputs.train if isinstance(inputs.train, Blocks) else inputs.valid
    batch = blocks.ids[: recipe.train.batch_size]
    spent = 0.0
    for _ in range(2):  # the first warms up
        start = time.perf_counter()
        objective(trial, batch)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        spent = time.perf_counter() - start
    return spent * recipe.train.accumulation * recipe.train.batch_size / len(batch)


@torch.no_grad()
def _check_equal(model: nn.Module, loaded: nn.Module, inputs: Inputs) -> None:
    ids = inputs.valid.ids[:1]
    expected = model.eval()(input_ids=ids, use_cache=False).logits
    found = loaded(input_ids=ids, use_cache=False).logits
    if not torch.equal(expected, found):
        raise FormatError(
            "dry run: the reloaded model differs from the packed one; please report it"
        )
