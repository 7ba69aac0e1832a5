"""The native decoding engine on a packed folder: prefill, decode, generate; one sequence at a time
(several: runtime/batch.py).

Threads may share an engine: each call waits for the one before. A request of several calls belongs
into `with engine.exclusive():`, or gets an engine of its own.

Legend: N tokens, V vocabulary, L layers, H hidden size.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from edgeqat import native
from edgeqat.errors import UsageError
from edgeqat.native_sequences import NativeGenerator
from edgeqat.runtime.guard import Guard

_PATIENCE = 0.5  # seconds that the end of the program waits for a daemon thread


class Engine:
    """A packed folder on the C++ kernels; raises native.UnsupportedModel for what only torch runs.

    threads: None is one per physical core. context: None is the model's longest sequence. half: the
    weights expanded to fp16, the float baseline. Also a context manager. A copy, and what is
    unpickled, opens the folder again with the same options and an empty sequence.
    """

    def __init__(
        self,
        folder: str | Path,
        threads: int | None = None,
        context: int | None = None,
        half: bool = False,
    ) -> None:
        self._origin: tuple[Any, ...] | None = (Path(folder).absolute(), threads, context, half)
        self._finish_opening(native.open_engine(str(folder), threads or 0, context or 0, half))

    @classmethod
    def random(
        cls,
        shape: str,
        scheme: str = "w4a8kv4",
        threads: int | None = None,
        context: int | None = None,
        half: bool = False,
    ) -> Engine:
        """Random weights of a named shape: llama-8m, llama-58m, smollm-135m or tinyllama-1.1b."""
        engine = cls.__new__(cls)
        engine._origin = None
        handle = native.open_random(shape, scheme, threads or 0, context or 0, half)
        engine._finish_opening(handle)
        return engine

    def _finish_opening(self, handle: int) -> None:
        self._guard = Guard(handle)
        weakref.finalize(self, self._guard.free, _PATIENCE)  # at exit at the latest
        info = native.info(handle)
        self.vocabulary, self.context = info.vocabulary, info.context
        self.threads, self.isa = info.threads, info.isa.decode()
        self.matrix_bytes, self.embedding_bytes = info.matrix_bytes, info.embedding_bytes

    def __reduce__(self) -> tuple[type[Engine], tuple[Any, ...]]:
        if self._origin is None:
            raise UsageError(
                "engine: random weights cannot be copied or pickled; call Engine.random again"
            )
        return type(self), self._origin

    @contextmanager
    def exclusive(self) -> Iterator[Engine]:
        """The engine for one whole request of this thread; calls of others wait until its end:

        with engine.exclusive():
            engine.reset()
            tokens = list(engine.generate(ids, 64))
        """
        with self._guard.lend():
            yield self

    def lend(self) -> AbstractContextManager[int]:
        """The native handle, for the calls of one thread."""
        return self._guard.lend()

    @property
    def position(self) -> int:
        """Tokens so far."""
        with self._guard.lend() as handle:
            return native.info(handle).position

    def prefill(self, ids: Sequence[int], every: bool = False) -> np.ndarray:
        """Append token ids; logits (V,) after the last one, or (N, V) after each with `every`."""
        shape = (len(ids), self.vocabulary) if every else (self.vocabulary,)
        logits = np.empty(shape, np.float32)
        with self._guard.change() as handle:
            native.forward(handle, np.asarray(ids, np.int32).reshape(-1), logits, every)
        return logits

    def decode(self, id: int) -> np.ndarray:
        """Append one token; logits (V,) after it."""
        return self.prefill([id])

    def trace(self, ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Append token ids; logits (N, V) after each, and what each decoder layer leaves in the
        residual stream (L, N, H).
        """
        with self._guard.change() as handle:
            return native.trace(handle, np.asarray(ids, np.int32).reshape(-1))

    def generate(
        self,
        ids: Sequence[int],
        max_tokens: int,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        before: Sequence[int] = (),
        lookup: bool = True,
    ) -> Iterator[int]:
        """Token ids that continue `ids`, up to `max_tokens` or an end-of-text token, which is not
        given. temperature 0 is greedy; the same seed gives the same tokens. Any thread may ask for
        the next one; UsageError where another call has changed the sequence meanwhile.

        lookup: what followed the last tokens where they stood before is guessed to follow again,
        and checked in one pass where that pays (prompt lookup decoding, Saxena 2023); the tokens
        are the same. before: the ids that the engine holds, for lookup alone. Until it is closed or
        exhausted the engine may be some tokens ahead of what was given.
        """
        sampler = native.Sampler(temperature, top_k, top_p, seed)
        with self._guard.change() as handle:
            generator = NativeGenerator(handle, sampler, before, ids, max_tokens, lookup)
            token = generator.next()
            changes = self._guard.changes
        try:
            while token is not None:
                yield token
                with self._guard.lend():  # for all of it: nobody comes between
                    self._check_unchanged(changes)
                    with self._guard.change():
                        token = generator.next()
                    changes = self._guard.changes
        finally:
            with suppress(UsageError), self._guard.lend():  # where it is closed there is no more
                if self._guard.changes == changes:
                    generator.end()

    def is_stop(self, id: int) -> bool:
        """Whether a token ends a text."""
        with self._guard.lend() as handle:
            return native.is_stop(handle, id)

    def reset(self) -> None:
        """Forget all tokens."""
        self.rewind(0)

    def rewind(self, position: int) -> None:
        """Forget the tokens from `position` on."""
        with self._guard.change() as handle:
            native.rewind(handle, position)

    def close(self) -> None:
        """Free the memory, after the calls of other threads; safe to call again."""
        self._guard.free()

    def _check_unchanged(self, changes: int) -> None:
        if self._guard.changes != changes:
            raise UsageError(
                "engine: another call changed the sequence while it generated; use "
                "`with engine.exclusive():` or an engine for each thread"
            )

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def engine_for(folder: Path, tokens: int, threads: int | None = None) -> Engine:
    """The engine of a folder, with room for so many tokens; raises native.UnsupportedModel where
    only torch has it.
    """
    engine = Engine(folder, threads)
    if engine.context < tokens:
        kept = engine.context
        engine.close()
        raise native.UnsupportedModel(
            f"{tokens} tokens are more than the {kept} that the engine runs of this model"
        )
    return engine
