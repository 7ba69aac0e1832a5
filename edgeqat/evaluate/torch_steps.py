"""torch in bfloat16 as a contender of `edgeqat bench`: transformers' own model and cache, SDPA."""

from __future__ import annotations

from typing import Any

import torch

from edgeqat.hf.shapes import random_model
from edgeqat.runtime.shape import Shape


class TorchSteps:
    """A random bf16 model of the given sizes and its one sequence."""

    isa = "torch"

    def __init__(self, shape: Shape, threads: int) -> None:
        torch.set_num_threads(threads)
        self._model: Any = random_model(shape, dtype=torch.bfloat16).eval()
        self._vocabulary = shape.vocabulary
        self._cache: Any = None
        self._position = 0

    def seek(self, depth: int) -> None:
        """Make the sequence `depth` tokens long."""
        if depth == 0:
            self._cache, self._position = None, 0
        elif depth < self._position:
            self._cache.crop(depth - self._position)
            self._position = depth
        else:
            self.prefill(depth - self._position)

    def prefill(self, count: int) -> None:
        """Append `count` tokens at once."""
        if count:
            self._append(count)

    def decode(self, count: int) -> None:
        """Append `count` tokens, one after the other."""
        for _ in range(count):
            self._append(1)

    @torch.inference_mode()
    def _append(self, count: int) -> None:
        positions = torch.arange(self._position, self._position + count)
        ids = (positions * 7919 % self._vocabulary)[None]
        done = self._model(ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        self._cache = done.past_key_values
        self._position += count
