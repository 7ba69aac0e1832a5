"""A conversation with a packed chat model on the engine: the model's own chat template, answers in
pieces, and what was read before stays in the engine's cache.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from pathlib import Path

from edgeqat import native
from edgeqat.errors import UsageError
from edgeqat.pipeline.folder_tokenizer import FolderTokenizer
from edgeqat.pipeline.generate import check_text_model, pieces
from edgeqat.runtime.engine import Engine
from edgeqat.runtime.sampling import GREEDY, Sampling
from edgeqat.runtime.sequence import Sequence as EngineSequence


class Conversation:
    """Messages so far, and the counts of all answers: prompt tokens, those of them that were in the
    cache, new tokens, seconds.
    """

    def __init__(
        self,
        folder: Path,
        max_tokens: int,
        sampling: Sampling = GREEDY,
        system: str | None = None,
    ) -> None:
        check_text_model(folder)
        self.tokenizer = FolderTokenizer(folder)
        self.tokenizer.check_template("use `edgeqat generate`")
        self.max_tokens, self.sampling = max_tokens, sampling
        self._engine = _opened(folder)
        self._sequence = EngineSequence(self._engine)
        self.turns: list[dict[str, str]] = []
        self.system = system
        self.answers = self.read = self.reused = self.written = 0
        self.seconds = 0.0

    def answer(self, words: str) -> Generator[str, None, None]:
        """Pieces of the answer to what a user says. Closed or interrupted, what it wrote so far is
        the answer; refused, the conversation is as it was.
        """
        turns = [*self.turns, {"role": "user", "content": words}]
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        ids = self.tokenizer.template([*system, *turns])
        room = self._engine.context - len(ids)
        if room < 1:
            raise UsageError(
                f"chat: {len(ids)} tokens fill the model's {self._engine.context} positions; say "
                "less, or begin anew with /reset"
            )
        start, text = time.perf_counter(), ""
        sampling = self.sampling._replace(seed=self.sampling.seed + self.answers)
        tokens = _Counted(self._sequence.generate(ids, min(room, self.max_tokens), sampling))
        try:
            for piece in pieces(self.tokenizer, tokens):
                text += piece
                yield piece
        finally:
            self.seconds += time.perf_counter() - start
            self.answers += 1
            self.read += len(ids)
            self.reused += self._sequence.reused
            self.written += tokens.count
            if text:
                self.turns = [*turns, {"role": "assistant", "content": text}]

    def reset(self) -> None:
        """Forget what was said; the system's words stay."""
        self.turns = []

    def close(self) -> None:
        """Free the engine."""
        self._engine.close()


class _Counted:
    """Tokens as they come, and how many came."""

    def __init__(self, tokens: Iterator[int]) -> None:
        self._tokens, self.count = tokens, 0

    def __iter__(self) -> Iterator[int]:
        for token in self._tokens:
            self.count += 1
            yield token


def _opened(folder: Path) -> Engine:
    native.require()
    try:
        return Engine(folder)
    except native.UnsupportedModel as error:
        raise UsageError(
            f"chat: the engine does not run '{folder}' ({error}); use `edgeqat generate --chat "
            "--engine torch`"
        ) from None
