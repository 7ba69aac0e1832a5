"""The samples of a data set as selection sees them: clean, by index, with the labels of their
logits.

Legend: N samples, T tokens, S side, C classes (of a language model, its vocabulary).
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from edgeqat.data.images import Images, Normalizer
from edgeqat.data.text import Blocks
from edgeqat.losses.distill import IGNORE
from edgeqat.nn.logits import class_logits

_IMAGES_AT_ONCE = 100  # the largest tensor stays below what the heap maps anew (edgeqat/native)
_TOKENS_AT_ONCE = 4096


class Samples(ABC):
    """What is scored and selected from."""

    at_once: int  # samples of one forward pass
    classes: Tensor | None = None  # of each sample (N,); None: they have none
    labelled = True

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def labels(self, index: Tensor) -> Tensor:
        """Labels (n, [T]) of the logits of samples."""

    @abstractmethod
    def logits(self, model: nn.Module, index: Tensor) -> Tensor:
        """Logits (n, [T,] C) of samples, on the model's device."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A hash of all of them."""


class ImageSamples(Samples):
    """Images without augmentation."""

    at_once = _IMAGES_AT_ONCE

    def __init__(self, images: Images, normalizer: Normalizer) -> None:
        self.images, self.normalizer = images, normalizer
        self.labelled = images.labelled
        self.classes = images.labels if images.labelled else None

    def __len__(self) -> int:
        return len(self.images)

    def labels(self, index: Tensor) -> Tensor:
        return self.images.labels[index]

    def logits(self, model: nn.Module, index: Tensor) -> Tensor:
        pixels = self.images.pixels[index].to(next(model.parameters()).device)
        return class_logits(model, self.normalizer(pixels))

    def fingerprint(self) -> str:
        return self.images.fingerprint()


class BlockSamples(Samples):
    """Packed blocks; the label of a token is the next one."""

    def __init__(self, blocks: Blocks) -> None:
        self.blocks = blocks
        self.at_once = max(1, _TOKENS_AT_ONCE // blocks.ids.shape[1])

    def __len__(self) -> int:
        return len(self.blocks)

    def labels(self, index: Tensor) -> Tensor:
        ids = self.blocks.ids[index]
        return torch.nn.functional.pad(ids[:, 1:], (0, 1), value=IGNORE)

    def logits(self, model: nn.Module, index: Tensor) -> Tensor:
        ids = self.blocks.ids[index].to(next(model.parameters()).device)
        return model(input_ids=ids, use_cache=False).logits

    def fingerprint(self) -> str:
        return self.blocks.fingerprint()
