"""The training objective: named loss terms of one batch. A term of weight zero is not computed.

    loss = (1 - gamma) * ce + gamma * kl                    kl against the float teacher
           + w_E * entropy + w_D * distribution             guidance on query and key

Sources: losses/distill, train/guidance. Legend: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from edgeqat.losses.distill import IGNORE, distill
from edgeqat.nn.token_importance import observing
from edgeqat.recipe import DistillSection, GuideSection
from edgeqat.train.guidance import Guidance


class Objective:
    """Turns a batch of token ids into {"loss", "ce", "kl", ...}; holds the teacher, if any."""

    def __init__(
        self,
        distillation: DistillSection,
        teacher: nn.Module | None,
        guide: GuideSection | None = None,
    ) -> None:
        self.gamma = distillation.weight if teacher is not None else 0.0
        self.temperature = distillation.temperature
        self.guidance = Guidance(guide or GuideSection())
        needed = self.gamma > 0 or self.guidance.needs_teacher
        self.teacher = teacher.eval().requires_grad_(False) if needed and teacher else None
        assert self.teacher is not None or not self.guidance.needs_teacher, "guided by no teacher"

    def __call__(
        self,
        student: nn.Module,
        input_ids: Tensor,
        count: Tensor | None = None,
        step: int = 0,
        attention_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Terms of a batch (B, T); `count` is the number of predicted tokens of the whole step, the
        attention rows that guidance compares follow from `step`.
        """
        inputs = {"input_ids": input_ids, "use_cache": False}
        labels = torch.full_like(input_ids, IGNORE)
        labels[:, :-1] = input_ids[:, 1:]  # shifting labels copies less than slicing logits
        if attention_mask is not None:
            inputs["attention_mask"] = attention_mask
            real = attention_mask.bool()
            labels[:, :-1].masked_fill_(~(real[:, :-1] & real[:, 1:]), IGNORE)
        with self._capture(student) as own, observing(student):
            logits = student(**inputs).logits
        teacher, other = None, {}
        if self.teacher is not None:
            with torch.no_grad(), self._capture(self.teacher) as other:
                found = self.teacher(**inputs).logits
            teacher = found.flatten(0, 1) if self.gamma > 0 else None
        loss, cross_entropy, divergence = distill(
            logits.flatten(0, 1), teacher, labels.flatten(), self.gamma, self.temperature, count
        )
        terms = {"ce": cross_entropy}
        if self.gamma > 0:
            terms["kl"] = divergence
        if self.guidance.is_on:
            guided = self.guidance.terms(own, other, step)
            share = 1.0 if count is None else (labels != IGNORE).sum() / count
            loss = loss + share * self.guidance.weighted(guided)
            terms |= guided
        return {"loss": loss, **terms}

    def _capture(self, model: nn.Module) -> Any:
        return self.guidance.capture(model) if self.guidance.is_on else nullcontext({})
