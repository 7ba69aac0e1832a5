"""The native decoding engine on a packed folder: prefill, decode, generate; one sequence at a time.

Legend: N tokens, V vocabulary, L layers, H hidden size.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from edgeqat import native
from edgeqat.errors import UsageError


class Engine:
    """A packed folder on the C++ kernels; raises native.UnsupportedModel for what only torch runs.

    threads: None is one per physical core. context: None is the model's longest sequence. half: the
    weights expanded to fp16, the float baseline. Also a context manager.
    """

    def __init__(
        self,
        folder: str | Path,
        threads: int | None = None,
        context: int | None = None,
        half: bool = False,
    ) -> None:
        self._handle = native.open_engine(str(folder), threads or 0, context or 0, half)
        self._finish_opening()

    @classmethod
    def random(
        cls,
        shape: str,
        scheme: str = "w4a8kv4",
        threads: int | None = None,
        context: int | None = None,
        half: bool = False,
    ) -> Engine:
        """Random weights of a named shape (tinyllama-1.1b, llama-58m, smollm-135m)."""
        engine = cls.__new__(cls)
        engine._handle = native.open_random(shape, scheme, threads or 0, context or 0, half)
        engine._finish_opening()
        return engine

    def _finish_opening(self) -> None:
        self._free = weakref.finalize(self, native.close, self._handle)  # at exit at the latest
        info = native.info(self._handle)
        self.vocabulary, self.context = info.vocabulary, info.context
        self.threads, self.isa = info.threads, info.isa.decode()
        self.matrix_bytes, self.embedding_bytes = info.matrix_bytes, info.embedding_bytes

    @property
    def position(self) -> int:
        """Tokens so far."""
        return native.info(self._open()).position

    def prefill(self, ids: Sequence[int], every: bool = False) -> np.ndarray:
        """Append token ids; logits (V,) after the last one, or (N, V) after each with `every`."""
        shape = (len(ids), self.vocabulary) if every else (self.vocabulary,)
        logits = np.empty(shape, np.float32)
        native.forward(self._open(), np.asarray(ids, np.int32).reshape(-1), logits, every)
        return logits

    def decode(self, id: int) -> np.ndarray:
        """Append one token; logits (V,) after it."""
        return self.prefill([id])

    def trace(self, ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Append token ids; logits (N, V) after each, and what each decoder layer leaves in the
        residual stream (L, N, H).
        """
        return native.trace(self._open(), np.asarray(ids, np.int32).reshape(-1))

    def generate(
        self,
        ids: Sequence[int],
        max_tokens: int,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> Iterator[int]:
        """Token ids that continue `ids`, up to `max_tokens` or an end-of-text token, which is not
        given. temperature 0 is greedy; the same seed gives the same tokens.
        """
        sampler = native.Sampler(temperature, top_k, top_p, seed)
        logits = self.prefill(ids)
        for step in range(max_tokens):
            token = sampler(logits)
            if native.is_stop(self._handle, token):
                return
            yield token
            if step + 1 < max_tokens:
                logits = self.decode(token)

    def reset(self) -> None:
        """Forget all tokens."""
        self.rewind(0)

    def rewind(self, position: int) -> None:
        """Forget the tokens from `position` on."""
        native.rewind(self._open(), position)

    def close(self) -> None:
        """Free the memory; safe to call again."""
        self._free()
        self._handle = 0

    def _open(self) -> int:
        if not self._handle:
            raise UsageError("engine: it was closed; open the folder again")
        return self._handle

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
