"""The float model's outputs on all samples: computed once, kept in EDGEQAT_CACHE, keyed by model
and data.

Log-probabilities of all classes (float32, exact) up to 1,000 of them or 1 GiB in all, of the k most
probable ones above (float16 and their class numbers): 16 of 8,192 hold 62% of the mass and give
another score, 256 are enough. They never change in a run, so a selection costs one forward pass
of the student alone.

Legend: N samples, T tokens, C classes, K kept classes.
"""

from __future__ import annotations

import hashlib
import logging
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from edgeqat import cache
from edgeqat.coreset.samples import Samples
from edgeqat.nn.folding import inference
from edgeqat.train import processes

logger = logging.getLogger(__name__)

EXACT_CLASSES = 1000
EXACT_BYTES = 1 << 30
KEPT_CLASSES = 256


class FloatOutputs(NamedTuple):
    """Log-probabilities (N, [T,] C) or (N, [T,] K), and for the latter the classes' numbers."""

    log_probabilities: Tensor
    numbers: Tensor | None
    seconds: float  # spent on computing them; 0: they were known

    def of(self, samples: Tensor, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Those of some samples."""
        log_probabilities = self.log_probabilities[samples].to(device).float()
        numbers = None if self.numbers is None else self.numbers[samples].to(device).long()
        return log_probabilities, numbers


def float_outputs(model: nn.Module, samples: Samples, key: str, kept: int | None) -> FloatOutputs:
    """The outputs of a float model; `key` is the fingerprint of its weights, `kept` the number of
    classes (None: all where they fit).
    """
    digest = hashlib.sha256(f"{key} {samples.fingerprint()} {kept}".encode()).hexdigest()
    file = cache.folder("outputs") / f"{digest}.npy"
    start = time.perf_counter()
    outputs = _read(file, len(samples))
    missing = processes.gathered(torch.tensor([float(outputs is None)]), processes.count())
    if outputs is None or missing.any():  # computed by all processes or by none
        outputs = _computed(model, samples, kept)
        seconds = time.perf_counter() - start
        logger.info("float outputs of %d samples computed in %.0f s", len(samples), seconds)
        if processes.is_first():
            arrays = [part.numpy() for part in outputs if part is not None]
            cache.keep(file, lambda part: _write(part, arrays))
        return FloatOutputs(*outputs, seconds)
    return FloatOutputs(*outputs, 0.0)


def _computed(model: nn.Module, samples: Samples, kept: int | None) -> tuple[Tensor, Tensor | None]:
    probabilities, numbers = [], []
    with inference(model) as ready:
        for index in processes.shard(len(samples)).split(samples.at_once):
            log_p = samples.logits(ready, index).float().log_softmax(-1)
            size = log_p[0].numel() * log_p.element_size() * len(samples)
            if log_p.shape[-1] > EXACT_CLASSES and (kept or size > EXACT_BYTES):
                log_p, classes = log_p.topk(min(kept or KEPT_CLASSES, log_p.shape[-1]), dim=-1)
                log_p = log_p.half()
                numbers.append(classes.int().cpu())
            probabilities.append(log_p.cpu())
    outputs = processes.gathered(torch.cat(probabilities), len(samples))
    return outputs, processes.gathered(torch.cat(numbers), len(samples)) if numbers else None


def _write(file: Path, arrays: list[np.ndarray]) -> None:
    with open(file, "wb") as stream:
        for array in arrays:
            np.save(stream, array, allow_pickle=False)


def _read(file: Path, count: int) -> tuple[Tensor, Tensor | None] | None:
    try:
        with open(file, "rb") as stream:
            first = torch.from_numpy(np.load(stream, allow_pickle=False))
            index = None
            if first.dtype == torch.float16:
                index = torch.from_numpy(np.load(stream, allow_pickle=False))
    except (OSError, ValueError, EOFError):
        return None
    return (first, index) if len(first) == count else None
