"""Rows of torchao: round to nearest, without calibration. int4: symmetric weights in groups;
int8dq: 8-bit weights a row, and 8-bit activations a token.

torchao has no packed int4 format for CPUs: the folder holds its codes, two in a byte, and fp16
scales.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgeqat import checkpoint
from edgeqat.families import HEADS

_INT4 = "int4"  # a type that torch's own annotations do not know


def quantize(model: Any, tokenizer: Any, blocks: Tensor, group: int, folder: Path) -> Any:
    """Quantize a float model in place (group 0: 8 bits), and write its codes into `folder`."""
    from torchao.quantization import (
        Int8DynamicActivationInt8WeightConfig,
        IntxWeightOnlyConfig,
        quantize_,
    )
    from torchao.quantization.granularity import PerGroup

    config: Any = Int8DynamicActivationInt8WeightConfig()
    if group:
        kind = getattr(torch, _INT4)
        config = IntxWeightOnlyConfig(weight_dtype=kind, granularity=PerGroup(group))
    tensors = {name: tensor.detach().half() for name, tensor in model.named_parameters()}
    quantize_(model, config, _is_inner)
    for name, module in model.named_modules():
        if _is_inner(module, name):
            codes, scale = module.weight.qdata, module.weight.scale
            tensors[f"{name}.weight"] = _paired(codes) if group else codes
            tensors[f"{name}.weight_scale"] = scale.half()
    checkpoint.write_tensors(folder / checkpoint.WEIGHTS, tensors)
    return model


def _is_inner(module: nn.Module, name: str) -> bool:
    """A linear layer that is no head; one that is tied would round the embedding too."""
    return isinstance(module, nn.Linear) and name.rpartition(".")[2] not in HEADS


def _paired(codes: Tensor) -> Tensor:
    """Codes of 4 bits, two in a byte."""
    low, high = codes[:, ::2].to(torch.uint8) & 15, codes[:, 1::2].to(torch.uint8) & 15
    return low | high << 4
