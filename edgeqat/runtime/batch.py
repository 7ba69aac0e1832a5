"""Several sequences on one engine: a step reads the weights once for all of them.

    batch = Batch(Engine(folder), 4)
    one, other = batch.slots[:2]
    batch.forward([Part(one, ids), Part(other, [7])])

Legend: N tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from edgeqat.runtime.engine import Engine


class Slot:
    """One sequence of a batch, with a cache of its own."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def position(self) -> int:
        """Tokens so far."""
        return self._engine.position

    def rewind(self, position: int) -> None:
        """Forget the tokens from `position` on."""
        self._engine.rewind(position)


class Part(NamedTuple):
    """Tokens that one sequence appends; `wanted` of the last ones give logits."""

    slot: Slot
    ids: Sequence[int]
    wanted: int = 1


class Batch:
    """`size` sequences of at most `context` tokens (None: the engine's) on one engine."""

    def __init__(self, engine: Engine, size: int, context: int | None = None) -> None:
        self.engine = engine
        self.context = context or engine.context
        self.vocabulary = engine.vocabulary
        self.slots = [Slot(engine.__reduce__()[0](*engine.__reduce__()[1])) for _ in range(size)]

    def forward(self, parts: Sequence[Part]) -> list[np.ndarray]:
        """Append the tokens of each part, of sequences that differ; logits (wanted, V) of each."""
        made = []
        for part in parts:
            logits = part.slot._engine.prefill(part.ids, every=True)
            made.append(logits[len(part.ids) - part.wanted :])
        return made

    def close(self) -> None:
        """Free the caches; the engine is the caller's."""
        for slot in self.slots:
            slot._engine.close()
