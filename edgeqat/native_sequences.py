"""Several sequences on one C++ engine, and tokens that continue its first one.

Legend: N tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import numpy as np

from edgeqat import native
from edgeqat.errors import UsageError

_END, _ERROR = -1, -2  # EDGEQAT_END, EDGEQAT_ERROR


class NativeSequence:
    """A sequence of an engine, of at most `context` tokens (0: the engine's)."""

    def __init__(self, engine: int, context: int) -> None:
        self._library = native.require()
        self._handle = self._library.edgeqat_sequence_new(engine, context)
        if not self._handle:
            native.check(self._library.edgeqat_last_status())

    @property
    def handle(self) -> int:
        """The C side's sequence; a UsageError where it is closed."""
        if not self._handle:
            raise UsageError("sequence: it was closed; make another batch")
        return int(self._handle)

    @property
    def position(self) -> int:
        """Tokens so far."""
        return int(self._library.edgeqat_sequence_position(self.handle))

    def rewind(self, position: int) -> None:
        """Forget the tokens from `position` on."""
        native.check(self._library.edgeqat_sequence_rewind(self.handle, position))

    def close(self) -> None:
        """Free its memory; safe to call again."""
        handle, self._handle = getattr(self, "_handle", None), None
        if handle:
            self._library.edgeqat_sequence_free(handle)

    def __reduce__(self) -> NoReturn:
        raise UsageError("sequence: it cannot be copied or pickled; make another one")

    def __del__(self) -> None:
        self.close()


def forward_parts(
    engine: int, parts: Sequence[tuple[NativeSequence, Sequence[int], int]], logits: np.ndarray
) -> None:
    """Append the ids of each part to its sequence; logits (sum of wanted, V) float32 of its last
    `wanted` tokens.
    """
    assert logits.dtype == np.float32 and logits.flags.c_contiguous
    flat = [_flat(ids) for _, ids, _ in parts]  # they outlive the call
    rows = [
        native.Part(one.handle, ids.ctypes.data, len(ids), wanted)
        for (one, _, wanted), ids in zip(parts, flat, strict=True)
    ]
    given = (native.Part * len(rows))(*rows)
    status = native.require().edgeqat_forward_parts(engine, given, len(parts), logits.ctypes.data)
    native.check(status)


class NativeGenerator:
    """Tokens that continue the first sequence of an engine by `ids` and at most `limit` more. With
    `lookup` some are guessed and checked in one pass, by `before`, which the sequence holds, and
    the text: the tokens are the same. The engine is to be open at each call.
    """

    def __init__(
        self,
        engine: int,
        sampler: native.Sampler,
        before: Sequence[int],
        ids: Sequence[int],
        limit: int,
        lookup: bool,
    ) -> None:
        self._library, self._sampler = native.require(), sampler  # which it draws from
        seen, given = _flat(before), _flat(ids)
        self._handle = self._library.edgeqat_generator_new(
            engine, sampler.handle, seen.ctypes.data, len(seen), given.ctypes.data, len(given),
            limit, lookup,
        )  # fmt: skip
        if not self._handle:
            native.check(self._library.edgeqat_last_status())

    def next(self) -> int | None:
        """The next token; None behind the limit or before a token that ends a text."""
        token = int(self._library.edgeqat_generator_next(self._handle))
        if token == _ERROR:
            native.check(self._library.edgeqat_last_status())
        return None if token == _END else token

    def end(self) -> None:
        """Forget the tokens that were guessed right and not given: the engine holds what it would
        hold without them.
        """
        native.check(self._library.edgeqat_generator_end(self._handle))

    def guesses(self) -> tuple[int, int]:
        """How many guessed tokens were checked, and how many of them were right."""
        counts = np.zeros(2, np.int64)
        checked, right = counts[:1].ctypes.data, counts[1:].ctypes.data
        self._library.edgeqat_generator_guesses(self._handle, checked, right)
        return int(counts[0]), int(counts[1])

    def __reduce__(self) -> NoReturn:
        raise UsageError("generator: it cannot be copied or pickled; make another one")

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._library.edgeqat_generator_free(self._handle)


def _flat(ids: Sequence[int]) -> np.ndarray:
    return np.ascontiguousarray(ids, np.int32).reshape(-1)
