"""Mixed widths: `quant.average_bits` becomes `quant.layer_bits`, chosen on calibration text.

The size that is met is that of all quantized weights with their scales, embedding and head
included; what a layer loses at a width is nn/sensitivity, who gets what quant/allocation.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from itertools import islice
from typing import Any

import torch
from transformers import set_seed

from edgeqat.errors import RecipeError, UsageError
from edgeqat.hf.model import prepare
from edgeqat.nn.decision import decisions, grouping, layers
from edgeqat.nn.half import float_copy
from edgeqat.nn.linear import QuantEmbedding
from edgeqat.nn.sensitivity import sensitivity
from edgeqat.pipeline.task import Task
from edgeqat.quant import packing
from edgeqat.quant.allocation import Choice, allocate
from edgeqat.quant.lsq import WeightQuantizer
from edgeqat.recipe.quant import QuantSection
from edgeqat.recipe.recipe import Recipe
from edgeqat.scheme import FLOAT_BITS, group_count

logger = logging.getLogger(__name__)

WIDTHS = (2, 3, 4, 6, 8)
_NARROWEST_EMBEDDING = 4
_TOKENS = 1024  # that losses are measured on


def with_widths(recipe: Recipe, task: Task) -> Recipe:
    """The recipe with the bits of every layer, where it asks for an average."""
    wanted = recipe.quant.average_bits
    if wanted is None:
        return recipe
    if task.metric.of_images:
        raise UsageError("quant.average_bits: it is for language models; leave it out")
    quant = recipe.quant.model_copy(update={"average_bits": None})
    set_seed(recipe.seed)
    choices = _choices(task, recipe, quant)
    counts = {name: layer.weight.numel() for name, layer in layers(task.model)}
    if not choices:
        raise RecipeError("quant.average_bits: no layer is left to quantize; look at quant.skip")
    weights = sum(counts[name] for name in choices)
    taken = allocate(choices, wanted, weights)
    used = sum(choice.bytes for choice in taken.values())
    shares = Counter[int]()
    for name, choice in taken.items():
        shares[choice.bits] += counts[name]
    logger.info(
        "%.3f bits a weight: %s; expected KL %.4f",
        8 * used / weights,
        ", ".join(f"{100 * shares[b] / weights:.0f}% at {b}" for b in sorted(shares)),
        sum(choice.loss for choice in taken.values()),
    )
    chosen = {name: choice.bits for name, choice in taken.items()}
    return recipe.model_copy(update={"quant": quant.model_copy(update={"layer_bits": chosen})})


def _choices(task: Task, recipe: Recipe, quant: QuantSection) -> dict[str, list[Choice]]:
    plain = quant.model_copy(update={"weight": quant.weight.model_copy(update={"init": "lsq"})})
    model: Any = prepare(float_copy(task.model), quant=plain)
    decided = {name: decision for name, _, decision in decisions(task.model, quant)}

    def rounder(layer: Any, bits: int) -> WeightQuantizer:
        shape = tuple(layer.weight.shape)
        quantizer = WeightQuantizer(shape, bits, *_grouping(layer, bits, quant))
        return quantizer.to(layer.weight.device)

    blocks = torch.cat(list(islice(task.calibration(recipe), _TOKENS)))
    count = max(1, _TOKENS // blocks.shape[1])
    losses = sensitivity(model, blocks[:count], WIDTHS, rounder)
    names = dict(model.named_modules())
    choices: dict[str, list[Choice]] = {}
    for name, by_bits in losses.items():
        layer: Any = names[name]
        if decided[name].bits == FLOAT_BITS:
            continue
        least = _NARROWEST_EMBEDDING if isinstance(layer, QuantEmbedding) else WIDTHS[0]
        choices[name] = [
            Choice(bits, _bytes(layer, bits, quant), loss if math.isfinite(loss) else 1e9)
            for bits, loss in by_bits.items()
            if bits >= least
        ]
    return choices


def _grouping(layer: Any, bits: int, quant: QuantSection) -> tuple[str, int | None]:
    return grouping(bits, quant, isinstance(layer, QuantEmbedding))


def _bytes(layer: Any, bits: int, quant: QuantSection) -> int:
    rows, columns = layer.weight.shape
    _, size = _grouping(layer, bits, quant)
    groups = group_count(columns, size) if size else 1
    tiles = packing.packed_shape((rows, columns), bits)
    return math.prod(tiles) + 2 * tiles[0] * packing.ROWS * groups
