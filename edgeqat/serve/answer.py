"""One answer while it is written: the tokens so far, the text that may be shown, what ends it.

The engine's thread writes it and hands events to whoever listens; anybody may cancel it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from edgeqat import native
from edgeqat.serve.question import Question
from edgeqat.serve.refusal import Refused
from edgeqat.serve.scores import Score, likeliest, log_probabilities
from edgeqat.serve.stops import Stops
from edgeqat.serve.text import Writer

STOP, LENGTH = "stop", "length"


@dataclass(frozen=True)
class Piece:
    """Text that may be shown, and the tokens that it came from where logprobs are asked for."""

    text: str
    scores: list[Score] = field(default_factory=list)


@dataclass(frozen=True)
class End:
    """Why an answer is over, and its counts of tokens."""

    reason: str
    prompt: int
    cached: int
    written: int


Event = Piece | End | Refused


class Answer:
    """The answer to a question whose prompt has the token ids `ids`."""

    def __init__(
        self,
        question: Question,
        ids: list[int],
        room: int,
        asked: float,
        deadline: float,
        emit: Callable[[Event], None],
    ) -> None:
        self.ids, self.asked, self.deadline = ids, asked, deadline
        self.cancelled = self.over = False
        self.latest = 0.0  # when the last token came
        self.cached = self.written = 0
        self._most = room if question.max_tokens is None else min(room, question.max_tokens)
        self._count = question.scores
        self._sampler = native.Sampler(*question.sampling)
        self._emit = emit
        self._behind = [] if question.chat else ids[-1:]
        self._stops = Stops(question.stops)
        self._length = 0  # characters of all pieces, shown or held back
        self._shown = 0
        self._scores: list[Score] = []

    def begin(self, writer: Writer) -> None:
        """Before the first token, on the thread that writes."""
        self._writer = writer
        self._pieces = writer.pieces(self._behind)

    def choose(self, logits: np.ndarray) -> int:
        """The next token, of logits (V,)."""
        return self._sampler(logits)

    def add(self, token: int, logits: np.ndarray) -> bool:
        """Take a token that does not end the text; whether the answer is over with it."""
        self.written += 1
        start, piece = self._length, self._pieces.push(token)
        self._length += len(piece)
        if self._count is not None:
            self._scores.append(self._score(token, logits, start))
        text, stopped = self._stops.feed(piece)
        self._show(text)
        if stopped:
            self._finish(STOP)
        elif self.written >= self._most:
            self.end(LENGTH)
        return self.over

    def end(self, reason: str) -> None:
        """No token follows: show what was held back."""
        text, stopped = self._stops.feed(self._pieces.end())
        self._show(text)
        if not stopped:
            self._show(self._stops.flush(), last=True)
        self._finish(STOP if stopped else reason)

    def refuse(self, refusal: Refused) -> None:
        """The answer cannot go on."""
        if not self.over:
            self.over = True
            self._emit(refusal)

    def _finish(self, reason: str) -> None:
        self.over = True
        self._emit(End(reason, len(self.ids), self.cached, self.written))

    def _show(self, text: str, last: bool = False) -> None:
        """Hand out text with the tokens that it came from; those of text that is held back wait."""
        self._shown += len(text)
        scores = [score for score in self._scores if last or score.start < self._shown]
        del self._scores[: len(scores)]  # they start one behind the other
        if text or scores:
            self._emit(Piece(text, scores))

    def _score(self, token: int, logits: np.ndarray, start: int) -> Score:
        values, text = log_probabilities(logits), self._writer.token
        top = [(text(id), float(values[id])) for id in likeliest(values, self._count or 0)]
        return Score(text(token), float(values[token]), top, start)
