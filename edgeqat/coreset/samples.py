"""The samples of a data set as selection sees them: clean, by index, with the labels of their
logits.

Legend: N samples, T tokens, S side, C classes (of a language model, its vocabulary).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from edgeqat.data.images import Images, Normalizer, augment
from edgeqat.data.text import Blocks
from edgeqat.losses.distill import IGNORE
from edgeqat.nn.logits import class_logits
from edgeqat.nn.norms import estimate, has_norms

_NORMS_AT_ONCE = 256
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

    @abstractmethod
    def recalibrate_batch_norms(self, model: nn.Module) -> bool:
        """Free a model of what the choice of samples it was trained on has left in its estimates
        of the data; whether it has any.
        """


class ImageSamples(Samples):
    """Images without augmentation. `norm_images` of them, augmented if training sees them so, are
    what batch norms are estimated on (0: they stay as they are).
    """

    def __init__(
        self,
        images: Images,
        normalizer: Normalizer,
        norm_images: int = 0,
        augmented: bool = False,
    ) -> None:
        self.images, self.normalizer, self.at_once = images, normalizer, images.at_once
        self.norm_images, self.augmented = norm_images, augmented
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

    def recalibrate_batch_norms(self, model: nn.Module) -> bool:
        if not self.norm_images or not has_norms(model):
            return False
        estimate(model, self._as_trained(next(model.parameters()).device))
        return True

    def _as_trained(self, device: torch.device) -> Iterator[Tensor]:
        """The same batches each time, spread evenly over the images."""
        generator = torch.Generator().manual_seed(0)
        pixels = self.images.evenly(self.norm_images).pixels
        parts = -(-len(pixels) // _NORMS_AT_ONCE)
        for part in (pixels[start::parts] for start in range(parts)):
            shown = augment(part, generator=generator) if self.augmented else part
            yield self.normalizer(shown.to(device))


class BlockSamples(Samples):
    """Packed blocks; the label of a token is the next one. Logits beyond `vocabulary` are padding
    (None: they all count).
    """

    def __init__(self, blocks: Blocks, vocabulary: int | None = None) -> None:
        self.blocks, self.vocabulary = blocks, vocabulary
        self.at_once = max(1, _TOKENS_AT_ONCE // blocks.ids.shape[1])

    def __len__(self) -> int:
        return len(self.blocks)

    def labels(self, index: Tensor) -> Tensor:
        ids, counted = self.blocks.ids[index], self.blocks.counted
        if counted is not None:
            ids = ids.masked_fill(~counted[index], IGNORE)
        return torch.nn.functional.pad(ids[:, 1:], (0, 1), value=IGNORE)

    def logits(self, model: nn.Module, index: Tensor) -> Tensor:
        device, positions = next(model.parameters()).device, self.blocks.positions
        inputs = {"input_ids": self.blocks.ids[index].to(device)}
        if positions is not None:
            inputs["position_ids"] = positions[index].to(device)
        logits: Tensor = model(**inputs, use_cache=False).logits
        return logits[..., : self.vocabulary]

    def fingerprint(self) -> str:
        return self.blocks.fingerprint()

    def recalibrate_batch_norms(self, model: nn.Module) -> bool:
        return False
