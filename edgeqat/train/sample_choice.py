"""What the trainer sees of whoever chooses its samples (coreset/reselection)."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch.utils.data import Sampler
from transformers import TrainerCallback

from edgeqat.train.callbacks import Recorder


class SampleChoice(TrainerCallback):
    """Exchanges the samples of a training stage between two passes."""

    sampler: Sampler  # over the chosen samples
    recorder: Recorder  # whose clock stands still meanwhile

    @abstractmethod
    def __len__(self) -> int:
        """Samples of a pass."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps (JSON values)."""

    @abstractmethod
    def restore(self, state: dict[str, Any]) -> None:
        """Go on with what a checkpoint kept."""
