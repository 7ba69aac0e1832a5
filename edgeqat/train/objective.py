"""The training objective of language models: named loss terms of one batch. A term of weight zero
is not computed.

    loss = (1 - gamma) * ce + gamma * kl                    kl against the float teacher
           + w_E * entropy + w_D * distribution             guidance on query and key
           + beta * correction                              block outputs

Images have the same terms but for guidance (train/image_objective).

Sources: losses/distill, train/guidance, train/correction. Legend: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from edgeqat.losses.distill import IGNORE, HeadProduct, Kept, Teacher, distill, distill_heads
from edgeqat.nn.deferred_head import DeferredHead, deferred
from edgeqat.nn.token_importance import observing
from edgeqat.recipe.train import CorrectSection, DistillSection, GuideSection
from edgeqat.train.correction import Correction
from edgeqat.train.guidance import Guidance


class TeacherOutputs(Protocol):
    """What a teacher that is not there has said of every sample (coreset/float_outputs)."""

    def of(self, samples: Tensor, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities (B, T, V), or (B, T, K) and the tokens they are of."""


class Objective:
    """Turns a batch into {"loss", "ce", "kl", ...}; holds the teacher, if any, or what it has said
    of the samples.

    A batch holds `input_ids` (B, T), and where it takes them, all (B, T): `attention_mask` of some
    padding, `counted` of not all to be predicted, `position_ids` of several samples in a block;
    with `outputs` the numbers `sample` (B,).
    """

    def __init__(
        self,
        distillation: DistillSection,
        teacher: nn.Module | None,
        guide: GuideSection | None = None,
        correct: CorrectSection | None = None,
        outputs: TeacherOutputs | None = None,
    ) -> None:
        self.outputs = outputs
        taught = teacher is not None or outputs is not None
        self.gamma = distillation.weight if taught else 0.0
        self.temperature = distillation.temperature
        self.guidance = Guidance(guide or GuideSection())
        self.correction = Correction(correct or CorrectSection())
        helped = self.guidance.needs_teacher or self.correction.is_on
        needed = self.gamma > 0 or helped
        self.teacher = teacher.eval().requires_grad_(False) if needed and teacher else None
        assert self.teacher is not None or not helped, "guided by no teacher"

    def __call__(
        self,
        student: nn.Module,
        batch: dict[str, Tensor],
        count: Tensor | None = None,
        step: int = 0,
    ) -> dict[str, Tensor]:
        """Terms of a batch; `count` is the number of labels of the whole step, what is drawn at
        random follows from `step`.
        """
        inputs, labels = self.prepared(batch, step)
        with (
            self._taps(student) as taps,
            self._blocks(student) as blocks,
            observing(student),
            deferred(student) as head,
        ):
            logits = _product(head, self.logits(student, inputs))
        teacher_taps, targets = {}, []
        taught: Teacher = None
        if self.outputs is not None:
            taught = self._kept(batch)
        elif self.teacher is not None:
            with (
                torch.no_grad(),
                self._taps(self.teacher) as teacher_taps,
                self._blocks(self.teacher) as targets,
                deferred(self.teacher if isinstance(logits, HeadProduct) else None) as head,
            ):
                taught = _product(head, self.logits(self.teacher, inputs))
        teacher = taught if self.gamma > 0 else None
        given = labels.flatten(), self.gamma, self.temperature, count
        if isinstance(logits, HeadProduct):
            loss, cross_entropy, divergence = distill_heads(logits, teacher, *given)
        else:
            assert not isinstance(teacher, HeadProduct)
            if isinstance(teacher, Tensor):
                teacher = teacher[:, : logits.shape[-1]]  # further rows are padding
            loss, cross_entropy, divergence = distill(logits, teacher, *given)
        terms = {"ce": cross_entropy}
        if self.gamma > 0:
            terms["kl"] = divergence
        share = 1.0 if count is None else (labels != IGNORE).sum() / count
        if self.guidance.is_on:
            guided = self.guidance.terms(taps, teacher_taps, step)
            loss = loss + share * self.guidance.weighted(guided)
            terms |= guided
        if self.correction.is_on:
            terms["correction"] = self.correction.term(blocks, targets)
            loss = loss + share * self.correction.weight * terms["correction"]
        return {"loss": loss, **terms}

    def prepared(self, batch: dict[str, Tensor], step: int) -> tuple[Any, Tensor]:
        """What goes into the models, and the labels (B, T) of their logits."""
        input_ids, attention_mask = batch["input_ids"], batch.get("attention_mask")
        inputs: dict[str, Any] = {"input_ids": input_ids, "use_cache": False}
        labels = torch.full_like(input_ids, IGNORE)
        labels[:, :-1] = input_ids[:, 1:]  # shifting labels copies less than slicing logits
        if attention_mask is not None:
            inputs["attention_mask"] = attention_mask
            real = attention_mask.bool()
            labels[:, :-1].masked_fill_(~(real[:, :-1] & real[:, 1:]), IGNORE)
        if "position_ids" in batch:  # they tell samples of a block apart
            inputs["position_ids"] = batch["position_ids"]
        if "counted" in batch:
            labels[:, :-1].masked_fill_(~batch["counted"][:, 1:], IGNORE)
        return inputs, labels

    def _kept(self, batch: dict[str, Tensor]) -> Tensor | Kept:
        """What the teacher has said of a batch's tokens (N, V), or of K of them a row."""
        assert self.outputs is not None
        sample = batch["sample"]
        values, tokens = self.outputs.of(sample.cpu(), sample.device)
        if tokens is None:
            return values.flatten(0, -2)
        return Kept(values.flatten(0, -2), tokens.flatten(0, -2))

    def logits(self, model: nn.Module, inputs: Any) -> Tensor:
        """Logits (B, T, V) of what `prepared` gave."""
        return model(**inputs).logits

    def _taps(self, model: nn.Module) -> AbstractContextManager[Any]:
        return self.guidance.capture(model) if self.guidance.is_on else nullcontext({})

    def _blocks(self, model: nn.Module) -> AbstractContextManager[list[Tensor]]:
        return self.correction.capture(model) if self.correction.is_on else nullcontext([])


def _product(head: DeferredHead, logits: Tensor) -> HeadProduct | Tensor:
    """Logits (N, V), or what gives them."""
    return logits.flatten(0, -2) if head.product is None else head.product
