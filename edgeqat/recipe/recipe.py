"""Recipes: one YAML file is one run. Validated once, here; the field descriptions are the
documentation.

Precedence: the defaults below < the base a file names < the file < the command line (--set a.b=c
and the short flags). An unknown key is an error that suggests the nearest name. The resolved recipe
is saved with the result.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator, model_validator

from edgeqat.recipe.data import (
    ArchitectureSection,
    CoresetSection,
    DataSection,
    ModelSection,
    coreset_value,
)
from edgeqat.recipe.quant import QuantSection
from edgeqat.recipe.section import VERSION, Section
from edgeqat.recipe.train import CorrectSection, DistillSection, GuideSection, TrainSection
from edgeqat.scheme import FLOAT_BITS


class Recipe(Section):
    """Everything a run needs."""

    version: int = Field(VERSION, description="version of the recipe's format")
    description: str = Field("", description="one line for `edgeqat recipes`")
    seed: int = Field(
        0, ge=0, lt=2**32, description="seed of data order, initialisation and sampling"
    )
    model: ModelSection = ModelSection()
    quant: QuantSection = QuantSection()
    data: DataSection = DataSection()
    train: TrainSection = TrainSection()
    distill: DistillSection = DistillSection()
    guide: GuideSection = GuideSection()
    coreset: CoresetSection = CoresetSection()
    correct: CorrectSection = CorrectSection()
    architecture: ArchitectureSection | None = Field(
        None, description="shape of the float model (only for `edgeqat train`)"
    )

    @field_validator("coreset", mode="before")
    @classmethod
    def _coreset(cls, value: Any) -> Any:
        return coreset_value(value)

    @model_validator(mode="after")
    def _adapters_have_a_place(self) -> Recipe:
        method = self.train.method
        if method != "full":
            if self.quant.weight.scale == "minmax":
                raise ValueError(f"train.method: '{method}' needs quant.weight.scale 'learned'")
            if self.quant.bits().weight_bits == FLOAT_BITS:
                raise ValueError(f"train.method: '{method}' needs a scheme with quantized weights")
        return self

    @model_validator(mode="after")
    def _kept_teacher_says_enough(self) -> Recipe:
        if self.distill.kept is None:
            return self
        entropy, distribution = self.guide.entropy, self.guide.distribution
        guided = distribution.weight > 0 or (entropy.weight > 0 and entropy.form == "gap")
        needed = {
            "distill.temperature": self.distill.temperature != 1,
            "guide": guided,
            "correct.weight": self.correct.weight > 0,
        }
        for field, given in needed.items():
            if given:
                raise ValueError(
                    f"{field}: it needs the teacher in every step, and distill.kept leaves it out; "
                    "give one of the two"
                )
        if self.distill.weight == 0:
            raise ValueError("distill.kept: distill.weight 0 needs no teacher; leave it out")
        return self

    @property
    def makes_float(self) -> bool:
        """Whether it is for `edgeqat train`."""
        return self.architecture is not None or self.quant.bits().is_float
