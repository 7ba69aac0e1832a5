"""torch in bfloat16 as a contender of `edgeqat bench`: transformers' own model and cache, SDPA."""

from __future__ import annotations

from typing import Any

import torch

from edgeqat.bench.sequence import Steps
from edgeqat.hf.float_model import random_model
from edgeqat.runtime.shape import Shape


class TorchSteps(Steps):
    """A random bf16 model of the given sizes and its one sequence."""

    isa = "torch"
    position = 0

    def __init__(self, shape: Shape, threads: int) -> None:
        torch.set_num_threads(threads)
        self._model: Any = random_model(shape, dtype=torch.bfloat16).eval()
        self.vocabulary = shape.vocabulary
        self.embedding_bytes = 0 if shape.tied else 2 * shape.vocabulary * shape.hidden
        self._cache: Any = None

    def seek(self, depth: int) -> None:
        """Make the sequence `depth` tokens long."""
        if depth == 0:
            self._cache, self.position = None, 0
        elif depth < self.position:
            self._cache.crop(depth - self.position)
            self.position = depth
        else:
            self.prefill(depth - self.position)

    @torch.inference_mode()
    def append(self, ids: list[int]) -> None:
        done = self._model(
            torch.tensor([ids]), past_key_values=self._cache, use_cache=True, logits_to_keep=1
        )
        self._cache = done.past_key_values
        self.position += len(ids)
