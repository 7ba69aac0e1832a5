"""What a converted model stores: its tensors, and their bytes by kind."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgeqat.families import EMBEDDINGS, HEADS


def stored_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Tensors of a converted model as they are stored: shared ones once, floats as float32."""
    stored: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        packed = tensor.dtype in (torch.uint8, torch.bool) or name.endswith("weight_scale")
        stored[name] = tensor.detach() if packed else tensor.detach().float()
    return stored


def size_by_kind(model: nn.Module) -> dict[str, int]:
    """Bytes of a converted model by kind, at their stored precision: weights, scales, embeddings,
    other.
    """
    sizes = {"weights": 0, "embeddings": 0, "scales": 0, "other": 0}
    for name, tensor in stored_tensors(model).items():
        size = tensor.numel() * tensor.element_size()
        if any(part in name for part in EMBEDDINGS | HEADS):
            sizes["embeddings"] += size
        elif name.endswith("weight_scale"):
            sizes["scales"] += size
        elif tensor.dtype == torch.uint8 or name.endswith("proj.weight"):
            sizes["weights"] += size
        else:
            sizes["other"] += size
    return {"total": sum(sizes.values()), **sizes}


def float_size(model: nn.Module) -> dict[str, Any]:
    """Bytes of the float model at fp16, tied weights once: what a packed size is set against."""
    unique = {id(p): p.numel() for p in model.parameters()}
    return {"fp16": 2 * sum(unique.values()), "parameters": sum(unique.values())}
