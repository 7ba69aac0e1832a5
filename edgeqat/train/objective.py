"""The training objective: named loss terms of one batch. A term of weight zero is not computed.

    loss = (1 - gamma) * ce + gamma * kl      with kl against the float teacher (losses/distill)

Legend: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgeqat.losses.distill import IGNORE, distill
from edgeqat.recipe import DistillSection


class Objective:
    """Turns a batch of token ids into {"loss", "ce", "kl"}; holds the teacher, if any."""

    def __init__(self, distillation: DistillSection, teacher: nn.Module | None) -> None:
        self.gamma = distillation.weight if teacher is not None else 0.0
        self.temperature = distillation.temperature
        self.teacher = teacher.eval().requires_grad_(False) if self.gamma > 0 and teacher else None

    def __call__(
        self, student: nn.Module, input_ids: Tensor, count: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Terms of a batch (B, T); `count` is the number of predicted tokens of the whole step."""
        logits = student(input_ids=input_ids, use_cache=False).logits
        labels = torch.full_like(input_ids, IGNORE)
        labels[:, :-1] = input_ids[:, 1:]  # shifting labels copies less than slicing logits
        teacher = None
        if self.teacher is not None:
            with torch.no_grad():
                teacher = self.teacher(input_ids=input_ids, use_cache=False).logits.flatten(0, 1)
        loss, cross_entropy, divergence = distill(
            logits.flatten(0, 1), teacher, labels.flatten(), self.gamma, self.temperature, count
        )
        terms = {"loss": loss, "ce": cross_entropy}
        if self.teacher is not None:
            terms["kl"] = divergence
        return terms
