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
        if self.train.method == "lowrank":
            if self.quant.weight.scale == "minmax":
                raise ValueError("train.method: 'lowrank' needs quant.weight.scale 'learned'")
            if self.quant.bits().weight_bits == FLOAT_BITS:
                raise ValueError("train.method: 'lowrank' needs a scheme with quantized weights")
        return self

    @property
    def makes_float(self) -> bool:
        """Whether it is for `edgeqat train`."""
        return self.architecture is not None or self.quant.bits().is_float
