"""The importance matrix that llama.cpp's quantizer takes: how large the inputs of a layer are.

    importance_j = mean over calibration tokens of x_j^2, for each input j of each linear layer

llama.cpp's own tool sums the same squares. Layers are named as in a GGUF file. Channels that
llama.cpp adds count 1, since their weights are zero.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgeqat import checkpoint
from edgeqat.export.blocks import BLOCK
from edgeqat.export.llama import gguf_name
from edgeqat.nn.blocks import decoder_layers
from edgeqat.output import whole_file


@torch.inference_mode()
def importance(model: Any, batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """Mean squared inputs (I,) float32 of the linear layers of the decoder layers, by the names of
    their weights in a GGUF file. Raises KeyError for layers that llama.cpp has no name for.
    """
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def watch(name: str) -> Any:
        def add(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            rows = inputs[0].flatten(0, -2).double()
            sums[name] = sums.get(name, 0) + rows.square().sum(0)
            counts[name] = counts.get(name, 0) + len(rows)

        return add

    handles = [
        module.register_forward_pre_hook(watch(f"{layer}.{name}"))
        for layer in decoder_layers(model)
        for name, module in model.get_submodule(layer).named_modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        model.eval()
        for ids in batches:
            model(input_ids=ids, use_cache=False, logits_to_keep=1)
    finally:
        for handle in handles:
            handle.remove()
    return {
        f"{gguf_name(name)}.weight": _padded((total / counts[name]).float())
        for name, total in sums.items()
    }


def _padded(values: Tensor) -> Tensor:
    return nn.functional.pad(values, (0, -len(values) % BLOCK), value=1.0)


def write(file: Path, matrix: dict[str, Tensor]) -> None:
    """Keep an importance matrix in a safetensors file."""
    with whole_file(file) as part:
        checkpoint.write_tensors(part, matrix)


def read(file: Path) -> dict[str, Tensor]:
    """What write() kept."""
    return checkpoint.read_tensors(file)
