"""A sampler whose samples may be exchanged between two passes, never their number."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Sampler

from edgeqat.seeds import mixed


class CoresetSampler(Sampler[int]):
    """The samples `index` (M,) of a dataset, in an order that follows from seed and `epoch`."""

    def __init__(self, index: Tensor, seed: int = 0) -> None:
        self.index, self.seed, self.epoch = index, seed, 0

    def __len__(self) -> int:
        return len(self.index)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(mixed(self.seed, self.epoch))
        order = torch.randperm(len(self.index), generator=generator)
        return iter(self.index[order].tolist())

    def exchange(self, index: Tensor) -> None:
        """Sample from others from the next pass on."""
        assert len(index) == len(self.index), "the length of a pass would change in mid-run"
        self.index = index
