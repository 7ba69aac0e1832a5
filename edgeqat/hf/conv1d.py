"""GPT-2's Conv1D, a linear layer with its weight stored (I, O), swapped for nn.Linear and back.

to_linear runs before prepare and before a packed folder fills a model, to_conv1d after restore, so
that nothing else of ours knows the layer.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from edgeqat.nn.layers import replace


def to_linear(model: nn.Module) -> None:
    """Replace every Conv1D by an nn.Linear with the transposed weight (O, I), in place."""
    for name, layer in [(n, m) for n, m in model.named_modules() if isinstance(m, Conv1D)]:
        columns, rows = layer.weight.shape
        linear: Any = nn.Linear(columns, rows, device="meta")
        linear.weight = nn.Parameter(layer.weight.detach().t().contiguous())
        linear.bias = layer.bias
        replace(model, name, linear.train(layer.training))


def to_conv1d(model: nn.Module, head: str) -> None:
    """Replace every nn.Linear but the head by a Conv1D, in place: the inverse of to_linear."""
    for name, layer in [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear)]:
        if name.rpartition(".")[2] == head:
            continue
        conv: Any = Conv1D(layer.out_features, layer.in_features)
        conv.weight = nn.Parameter(layer.weight.detach().t().contiguous())
        conv.bias = layer.bias
        replace(model, name, conv.train(layer.training))
