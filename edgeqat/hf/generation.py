"""What transformers' generate() is told so that it writes what the engine writes: nothing of a
folder's own settings but where a text ends, and stop strings of new tokens alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteria


def reset_generation_config(model: Any) -> None:
    """Leave of a model's generation_config only where a text begins and ends, which is all that
    the engine reads: no repetition penalty, no sampling unless generate() is asked for it.
    """
    config = model.generation_config
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    model.generation_config = GenerationConfig(**{name: getattr(config, name) for name in names})


class Stops(StoppingCriteria):
    """Ends a sequence of a batch when its new tokens, those behind the first `start`, spell a stop
    string; `lengths` are those of the sequences that did.
    """

    def __init__(self, tokenizer: Any, stops: list[str], start: int = 0, batch: int = 1) -> None:
        self.tokenizer, self.stops, self.start = tokenizer, stops, start
        # a token is at least a byte, and a blank may hide at the first one
        self.reach = max([len(stop.encode()) for stop in stops], default=0) + 1
        self.lengths: list[int | None] = [None] * batch

    def spelled(self, tokens: list[int]) -> bool:
        """Whether the last of these new tokens ends a stop string."""
        if not self.stops:
            return False
        text = self.tokenizer.decode(tokens[-self.reach :])
        return any(stop in text for stop in self.stops)

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        count = input_ids.shape[1]
        new = input_ids[:, max(self.start, count - self.reach) :].tolist()
        for row, tokens in enumerate(new):
            if self.lengths[row] is None and self.spelled(tokens):
                self.lengths[row] = count
        ended = [length is not None for length in self.lengths]
        return torch.tensor(ended, device=input_ids.device)
