"""The text that an engine holds: another one goes on from what both begin with.

    sequence = Sequence(engine)
    sequence.rows(ids, 2)           # reads all of ids
    sequence.generate(more, 64)     # goes back to where `more` parts from ids, reads its rest

The engine belongs to its sequence: who calls it beside this must call forget().

Legend: N tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Tokens

import numpy as np

from edgeqat.runtime.engine import Engine
from edgeqat.runtime.sampling import GREEDY, Sampling

_CHUNK = 240  # tokens that the engine computes at once


def shared_length(left: Tokens[int], right: Tokens[int]) -> int:
    """How many tokens two texts begin with alike."""
    for number, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return number
    return min(len(left), len(right))


class Sequence:
    """What an engine has read and written, as token ids; `reused` are those of the last text that
    were there already.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.reused = 0
        self._ids: list[int] = []
        self.forget()

    def forget(self) -> None:
        """Begin anew."""
        self.engine.reset()
        self._ids, self.reused = [], 0

    def rows(self, ids: Tokens[int], count: int) -> np.ndarray:
        """Logits (count, V) behind the last `count` tokens of a text."""
        rest = self._go_back(ids, count)
        if len(rest) > count:
            self.engine.prefill(rest[:-count])
        return self.engine.prefill(rest[-count:], every=True)

    def decode(self, id: int) -> np.ndarray:
        """Append one token; logits (V,) behind it."""
        logits = self.engine.decode(id)
        self._ids.append(id)
        return logits

    def generate(
        self, ids: Tokens[int], max_tokens: int, sampling: Sampling = GREEDY
    ) -> Iterator[int]:
        """Token ids that continue a text, as Engine.generate gives them."""
        rest = self._go_back(ids, 1)
        while len(rest) > _CHUNK:  # an interruption waits for no more than that
            self.engine.prefill(rest[:_CHUNK])
            rest = rest[_CHUNK:]
        before = ids[: len(ids) - len(rest)]
        for token in self.engine.generate(rest, max_tokens, *sampling, before=before):
            self._ids.append(token)
            yield token

    def _go_back(self, ids: Tokens[int], count: int) -> list[int]:
        """What of a text is to be read, at least its last `count` tokens."""
        held = self._ids[: self.engine.position]  # the last one given may not have been read
        self.reused = min(shared_length(held, ids), len(ids) - count)
        self.engine.rewind(self.reused)
        self._ids = list(ids)
        return self._ids[self.reused :]
