"""Rows of auto-round (SignRound, 2309.05516): int4 weights whose rounding is tuned block by block,
at the library's own number of steps.

The folder holds what auto-round writes. Scored are the values that its codes stand for, in float32.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def quantize(
    model: Any, tokenizer: Any, blocks: Tensor, group: int, folder: Path
) -> dict[str, Tensor]:
    """Quantize a float model on calibration blocks (N, T), write it into `folder`, and return the
    dequantized weights of its linear layers.
    """
    from auto_round import AutoRound

    names = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    rounding = AutoRound(
        model, tokenizer, scheme="W4A16", group_size=group, dataset=list(blocks.split(1)),
        seqlen=blocks.shape[1], nsamples=len(blocks), device_map="cpu", enable_torch_compile=False,
        low_cpu_mem_usage=False,
    )  # fmt: skip
    rounded, _ = rounding.quantize()
    weights = {name: rounded.get_submodule(name).weight.detach().float() for name in names}
    rounding.save_quantized(str(folder), format="auto_round")
    return weights
