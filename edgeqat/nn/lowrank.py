"""Low-rank training of a prepared model: adapters inside the rounding (quant/lowrank), the rest
frozen.

Every quantized linear layer but lm_head gets an adapter. Trained are A, B, all scales, norms and
biases; embeddings and lm_head keep their float weights. Not here: peft's files (hf/lowrank).
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from edgeqat.errors import RecipeError
from edgeqat.families import HEADS
from edgeqat.nn.linear import QuantLinear
from edgeqat.quant.lowrank import LowRankQuantizer
from edgeqat.quant.lsq import WeightQuantizer
from edgeqat.quant.quantizer import Quantizer
from edgeqat.recipe.train import LowRankSection


def add_adapters(model: nn.Module, section: LowRankSection) -> nn.Module:
    """Give the quantized linear layers of a prepared model adapters and freeze the rest, in place.

    A layer's weight becomes the frozen base in units of codes; its float weight goes.
    """
    _freeze_matrices(model)
    for name, layer in list(model.named_modules()):
        quantizer = getattr(layer, "weight_quantizer", None)
        if not isinstance(layer, QuantLinear) or not isinstance(quantizer, WeightQuantizer):
            continue
        if name.rpartition(".")[2] in HEADS:
            continue
        layer.weight_quantizer, base = LowRankQuantizer.wrap(
            quantizer, layer.weight.detach(), section.rank, section.alpha, section.base
        )
        layer.weight = nn.Parameter(base, requires_grad=False)
    if not any(True for _ in adapters(model)):
        raise RecipeError(
            "train.method: 'lowrank' needs quantized weights, the scheme has none; write for "
            "example --w4a8kv4"
        )
    return model


def adapters(model: nn.Module) -> Iterator[tuple[str, LowRankQuantizer]]:
    """Names of the layers that have an adapter, and their quantizers."""
    for name, module in model.named_modules():
        quantizer = getattr(module, "weight_quantizer", None)
        if isinstance(module, QuantLinear) and isinstance(quantizer, LowRankQuantizer):
            yield name, quantizer


def _freeze_matrices(model: nn.Module) -> None:
    scales = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, Quantizer)
        for parameter in module.scale_parameters()
    }
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.ndim < 2 or id(parameter) in scales)
