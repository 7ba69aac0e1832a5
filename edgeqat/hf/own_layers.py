"""Layers of a family's own, swapped for plain ones and back: GPT-2's Conv1D, a linear layer with
its weight stored (I, O), and Gemma's embedding, which multiplies its rows.

to_plain runs before prepare and before a packed folder fills a model, to_own after restore, so that
nothing else of ours knows these layers.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding
from transformers.pytorch_utils import Conv1D

from edgeqat.families import Family
from edgeqat.nn.layers import replace
from edgeqat.nn.linear import ScaledEmbedding


def to_plain(model: nn.Module) -> None:
    """Replace every Conv1D by an nn.Linear with the transposed weight (O, I), and every embedding
    with a factor by our own, in place.
    """
    for name, layer in list(model.named_modules()):
        plain: Any = None
        weight: Any = getattr(layer, "weight", None)
        if isinstance(layer, Conv1D):
            columns, rows = layer.weight.shape
            plain = nn.Linear(columns, rows, device="meta")
            plain.weight = nn.Parameter(layer.weight.detach().t().contiguous())
            plain.bias = layer.bias
        elif type(layer) is Gemma3TextScaledWordEmbedding:
            factor = float(layer.scalar_embed_scale)
            plain = ScaledEmbedding.wrap(weight, layer.padding_idx, factor)
        if plain is not None:
            replace(model, name, plain.train(layer.training))


def to_own(model: nn.Module, family: Family) -> None:
    """The inverse of to_plain, in place."""
    for name, layer in list(model.named_modules()):
        own: Any = None
        is_head = name.rpartition(".")[2] == family.head
        if isinstance(layer, ScaledEmbedding):
            own = Gemma3TextScaledWordEmbedding(1, layer.embedding_dim, 0, layer.factor)
            own.weight, own.num_embeddings = layer.weight, layer.num_embeddings
            own.padding_idx = layer.padding_idx
        elif family.conv1d and isinstance(layer, nn.Linear) and not is_head:
            own = Conv1D(layer.out_features, layer.in_features)
            own.weight = nn.Parameter(layer.weight.detach().t().contiguous())
            own.bias = layer.bias
        if own is not None:
            replace(model, name, own.train(layer.training))
