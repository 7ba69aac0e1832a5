"""Everything that differs between text and image models: data, metric, objective and folder.
Language models (pipeline/text_task) and image classifiers (pipeline/image_task) are the two tasks;
the rest of the pipeline is the same for both.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgeqat.coreset.samples import Samples
from edgeqat.data.images import Images
from edgeqat.data.text import Blocks, BlockStream
from edgeqat.evaluate.metric import Metric
from edgeqat.recipe.quant import QuantSection
from edgeqat.recipe.recipe import Recipe
from edgeqat.train.objective import Objective
from edgeqat.train.optim import TOKENS

Score = dict[str, float]


class Task(ABC):
    """A loaded float model with its data. `train` and `valid` are data sets with fingerprints,
    `teacher` None stands for the model's own float weights.
    """

    metric: Metric
    model: nn.Module
    teacher: nn.Module | None
    train: Blocks | BlockStream | Images
    valid: Blocks | Images
    load: Callable[[], tuple[Any, Any]] | None = None  # model and teacher anew

    @abstractmethod
    def describe(self) -> str:
        """The data in words."""

    def release(self) -> None:
        """Let go of the float models, which need room that others want."""
        del self.model
        self.teacher = None

    def bring_back(self) -> None:
        """Load the float models again, if a stage that needs none has released them."""
        if not hasattr(self, "model"):
            assert self.load is not None
            self.model, self.teacher = self.load()

    def text(self) -> tuple[Tensor, list[str]] | None:
        """Ids (T,) of a held-out text for the report's snapshots, and its tokens as words; None of
        images.
        """
        return None

    @abstractmethod
    def source(self, recipe: Recipe) -> str:
        """Where the training data were read from."""

    @abstractmethod
    def evaluate(self, model: nn.Module) -> Score:
        """The score of a model on the held-out data."""

    @abstractmethod
    def conditions(self, recipe: Recipe) -> dict[str, Any]:
        """What a score depends on, for `evaluation` in metrics.json."""

    @abstractmethod
    def gap(self, score: Score, floating: Score) -> float:
        """What a score has lost against the float model's, in nats (0 or less: nothing)."""

    @abstractmethod
    def recovered(self, floating: Score, ptq: Score, qat: Score) -> float | None:
        """The share of what PTQ loses that training brought back; None when it loses nothing."""

    @abstractmethod
    def objective(self, recipe: Recipe, teacher: nn.Module | None) -> Objective:
        """The training objective; without a teacher, of a float model."""

    def step_tokens(self, recipe: Recipe) -> int:
        """Tokens of an optimizer step over all processes; of images as many as make no difference
        to the learning rate.
        """
        return TOKENS

    @abstractmethod
    def samples(self, recipe: Recipe) -> Samples:
        """The training data as selection sees it."""

    @abstractmethod
    def calibration(self, recipe: Recipe) -> Iterable[Any]:
        """Inputs that initialise static activation scales, batch by batch, as nn/calibration takes
        them.
        """

    @abstractmethod
    def batch(self, size: int) -> dict[str, Tensor]:
        """A training batch, to measure time with."""

    @abstractmethod
    def outputs(self, model: nn.Module) -> Tensor:
        """Logits of a model in eval mode on a little held-out data, to compare two with."""

    @abstractmethod
    def write(self, folder: Path, model: nn.Module, quant: QuantSection) -> None:
        """Fill an empty folder with a converted model, and seal it."""

    @abstractmethod
    def seal(
        self, folder: Path, model: nn.Module, quant: QuantSection, files: dict[str, str]
    ) -> None:
        """Add text files and hash everything."""

    @abstractmethod
    def untrained(self, recipe: Recipe) -> nn.Module:
        """A float model of the task's architecture with random weights."""

    @abstractmethod
    def write_float(self, folder: Path, model: nn.Module, recipe: Recipe) -> None:
        """Fill a folder with a float model that `edgeqat train` made."""

    def stored_dtype(self, recipe: Recipe) -> torch.dtype:
        """The type in which write_float stores weights."""
        return torch.float32
