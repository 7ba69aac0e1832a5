"""Logits of an image classifier, whoever wrote it: a tensor, or the output of transformers."""

from __future__ import annotations

from torch import Tensor, nn


def class_logits(model: nn.Module, images: Tensor) -> Tensor:
    """Logits (B, C) of normalised images (B, 3, S, S)."""
    output = model(images)
    return output if isinstance(output, Tensor) else output.logits
