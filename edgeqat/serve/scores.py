"""Log-probabilities of tokens: log softmax of the logits, before temperature, top-k and top-p.

Legend: V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Score(NamedTuple):
    """A token of an answer; `start` is where its text begins in the answer's."""

    text: str
    logprob: float
    top: list[tuple[str, float]]
    start: int


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    """Logits (V,) as log-probabilities (V,) float64."""
    shifted = logits.astype(np.float64) - logits.max()
    normal: np.ndarray = shifted - np.log(np.exp(shifted).sum())
    return normal


def likeliest(values: np.ndarray, count: int) -> list[int]:
    """The `count` largest of (V,), the largest first; of equal ones the lower id."""
    count = min(count, len(values))
    if not count:
        return []
    found = np.argpartition(-values, count - 1)[:count]
    return [int(id) for id in found[np.lexsort((found, -values[found]))]]
