"""Several sequences on one engine: a step reads the weights once for all of them.

    batch = Batch(Engine(folder), 4)
    one, other = batch.slots[:2]
    batch.forward([Part(one, ids), Part(other, [7])])

What a sequence computes does not depend on the others, to the last bit.

Legend: V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from edgeqat.errors import UsageError
from edgeqat.native_sequences import NativeSequence, forward_parts
from edgeqat.runtime.engine import Engine


class Slot:
    """One sequence of a batch, with a cache of its own."""

    def __init__(self, engine: Engine, context: int) -> None:
        self._engine = engine
        with engine.lend() as handle:
            self.sequence = NativeSequence(handle, context)

    @property
    def position(self) -> int:
        """Tokens so far."""
        with self._engine.lend():
            return self.sequence.position

    def rewind(self, position: int) -> None:
        """Forget the tokens from `position` on."""
        with self._engine.lend():
            self.sequence.rewind(position)


class Part(NamedTuple):
    """Tokens that one sequence appends; the `wanted` last ones give logits."""

    slot: Slot
    ids: Sequence[int]
    wanted: int = 1


class Batch:
    """`size` sequences of at most `context` tokens (None: the engine's) on one engine, which is to
    be closed after them. Their memory is taken as they grow.
    """

    def __init__(self, engine: Engine, size: int, context: int | None = None) -> None:
        if size < 1:
            raise UsageError(f"batch: {size} sequences are none; give at least 1")
        self.engine = engine
        self.context = context or engine.context
        self.vocabulary = engine.vocabulary
        self.slots = [Slot(engine, self.context) for _ in range(size)]

    def forward(self, parts: Sequence[Part]) -> list[np.ndarray]:
        """Append the tokens of each part, of sequences that differ; logits (wanted, V) of each. A
        call that fails appends nothing.
        """
        counts = [max(part.wanted, 0) for part in parts]
        logits = np.empty((sum(counts), self.vocabulary), np.float32)
        given = [(part.slot.sequence, part.ids, part.wanted) for part in parts]
        with self.engine.lend() as handle:
            forward_parts(handle, given, logits)
        return np.split(logits, np.cumsum(counts)[:-1])

    def close(self) -> None:
        """Free the sequences; the engine is the caller's."""
        with self.engine.lend():
            for slot in self.slots:
                slot.sequence.close()
