"""The training objective of image classifiers: the terms of train/objective on pixels that student
and teacher see augmented alike.

With gamma 1 the loss is the soft cross-entropy with the teacher, up to the teacher's entropy (QuaRC
2507.17768, eq. 6); labels may be missing then. What is drawn at random follows from seed, step and
batch, so that a run that continues draws what the undisturbed one drew.

Legend: B batch, S side, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgeqat.data.images import Normalizer, augment
from edgeqat.nn.blocks import AUTO
from edgeqat.nn.folding import folded
from edgeqat.nn.logits import class_logits
from edgeqat.recipe.train import CorrectSection, DistillSection
from edgeqat.seeds import mixed
from edgeqat.train.objective import Objective


class ImageObjective(Objective):
    """Turns a batch of `pixels` (B, 3, S, S) uint8, `labels` (B,) and `index` (B,) into terms."""

    def __init__(
        self,
        distillation: DistillSection,
        teacher: nn.Module | None,
        normalizer: Normalizer,
        augmented: bool,
        seed: int = 0,
        correct: CorrectSection | None = None,
    ) -> None:
        super().__init__(distillation, teacher, correct=correct)
        # a rule of the user's own may tap what the folding changes
        taps_norms = self.correction.is_on and self.correction.section.blocks != AUTO
        self._folds = self.teacher is not None and not taps_norms
        self.normalizer, self.augmented, self.seed = normalizer, augmented, seed

    def prepared(self, batch: dict[str, Tensor], step: int) -> tuple[Tensor, Tensor]:
        if self._folds:  # not earlier: the Trainer moves the float model, which selectors share
            assert self.teacher is not None
            self.teacher, self._folds = folded(self.teacher), False
        pixels, labels = batch["pixels"], batch["labels"]
        if self.augmented:
            drawn = mixed(self.seed, step, int(batch["index"][0]))
            generator = torch.Generator().manual_seed(drawn)
            pixels = augment(pixels, generator=generator)
        if self.gamma == 1:
            labels = labels.clamp(min=0)  # their term has no weight
        return self.normalizer(pixels), labels

    def logits(self, model: nn.Module, inputs: Tensor) -> Tensor:
        return class_logits(model, inputs)
