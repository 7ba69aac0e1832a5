"""Several sequences on one C++ engine.

Legend: N tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import numpy as np

from edgeqat import native
from edgeqat.errors import UsageError


class NativeSequence:
    """A sequence of an engine, of at most `context` tokens (0: the engine's)."""

    def __init__(self, engine: int, context: int) -> None:
        self._library = native.require()
        self.handle = self._library.edgeqat_sequence_new(engine, context)
        if not self.handle:
            native.check(self._library.edgeqat_last_status())

    @property
    def position(self) -> int:
        """Tokens so far."""
        return int(self._library.edgeqat_sequence_position(self.handle))

    def rewind(self, position: int) -> None:
        """Forget the tokens from `position` on."""
        native.check(self._library.edgeqat_sequence_rewind(self.handle, position))

    def close(self) -> None:
        """Free its memory; safe to call again."""
        handle, self.handle = getattr(self, "handle", None), None
        if handle:
            self._library.edgeqat_sequence_free(handle)

    def __reduce__(self) -> NoReturn:
        raise UsageError("sequence: it cannot be copied or pickled; make another one")

    def __del__(self) -> None:
        self.close()


def forward_parts(
    engine: int, parts: Sequence[tuple[NativeSequence, np.ndarray, int]], logits: np.ndarray
) -> None:
    """Append the ids (N,) int32 of each part to its sequence; logits (sum of wanted, V) float32 of
    its last `wanted` tokens.
    """
    assert logits.dtype == np.float32 and logits.flags.c_contiguous
    rows = [native.Part(one.handle, ids.ctypes.data, len(ids), n) for one, ids, n in parts]
    given = (native.Part * len(rows))(*rows)
    status = native.require().edgeqat_forward_parts(engine, given, len(parts), logits.ctypes.data)
    native.check(status)
