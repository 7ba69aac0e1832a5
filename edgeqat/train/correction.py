"""Layer correction in training: the term `correction`, from the block outputs of student and float
model (losses/layer_correction, nn/blocks).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from edgeqat.errors import RecipeError
from edgeqat.losses.layer_correction import layer_correction
from edgeqat.nn.blocks import block_names, tapped
from edgeqat.recipe.train import CorrectSection


class Correction:
    """The term of a recipe's section `correct`; of weight zero it is not computed."""

    def __init__(self, section: CorrectSection) -> None:
        self.section = section
        self.weight = section.weight
        self.is_on = section.weight > 0

    def check(self, student: nn.Module, teacher: nn.Module) -> None:
        """Refuse a rule that finds no blocks, or other ones in the teacher."""
        if not self.is_on:
            return
        names = [block_names(model, self.section.blocks) for model in (student, teacher)]
        if len(names[0]) != len(names[1]):
            raise RecipeError(
                f"correct.blocks: '{self.section.blocks}' finds {len(names[0])} blocks of the "
                f"model and {len(names[1])} of its teacher; name those that correspond, or drop "
                "distill.teacher"
            )

    def capture(self, model: nn.Module) -> AbstractContextManager[list[Tensor]]:
        """The block outputs of the forward pass in the block."""
        if isinstance(model, DistributedDataParallel):
            model = model.module
        return tapped(model, block_names(model, self.section.blocks))

    def term(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """The summed distance, unweighted, float32."""
        shapes = [tuple(x.shape) for x in student], [tuple(x.shape) for x in teacher]
        if shapes[0] != shapes[1]:
            raise RecipeError(
                f"correct: the teacher's blocks have the shapes {shapes[1][:2]}..., the model's "
                f"{shapes[0][:2]}...; drop distill.teacher or set correct.weight to 0"
            )
        with torch.autocast(student[0].device.type, enabled=False):
            return layer_correction(student, teacher, self.section.form)
