"""Answers as OpenAI's JSON: whole, or in chunks that begin alike."""

from __future__ import annotations

import secrets
import time
from typing import Any

import edgeqat
from edgeqat.serve.answer import End, Piece
from edgeqat.serve.question import Question
from edgeqat.serve.scores import Score


class Reply:
    """The JSON objects of one answer."""

    def __init__(self, question: Question, model: str) -> None:
        self._chat, self._question = question.chat, question
        kind = "chat.completion" if question.chat else "text_completion"
        chunk = f"{kind}.chunk" if question.chat else kind
        self._head: dict[str, Any] = {
            "id": f"{'chatcmpl' if question.chat else 'cmpl'}-{secrets.token_hex(12)}",
            "object": chunk if question.stream else kind,
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": f"edgeqat-{edgeqat.__version__}",
        }

    def whole(self, pieces: list[Piece], end: End) -> dict[str, Any]:
        """The answer at once."""
        text = "".join(piece.text for piece in pieces)
        scores = [score for piece in pieces for score in piece.scores]
        message = {"role": "assistant", "content": text, "refusal": None}
        content: dict[str, Any] = {"message": message} if self._chat else {"text": text}
        return {**self._object(content, scores, end.reason), "usage": usage(end)}

    def first(self) -> list[dict[str, Any]]:
        """What a stream begins with."""
        delta = {"delta": {"role": "assistant", "content": ""}}
        return [self._chunk(delta, [], None)] if self._chat else []

    def piece(self, piece: Piece) -> dict[str, Any]:
        """A chunk of a stream."""
        content = {"delta": {"content": piece.text}} if self._chat else {"text": piece.text}
        return self._chunk(content, piece.scores, None)

    def last(self, end: End) -> list[dict[str, Any]]:
        """What a stream ends with."""
        content: dict[str, Any] = {"delta": {}} if self._chat else {"text": ""}
        chunks = [self._chunk(content, [], end.reason)]
        if self._question.include_usage:
            chunks.append({**self._head, "choices": [], "usage": usage(end)})
        return chunks

    def _chunk(
        self, content: dict[str, Any], scores: list[Score], reason: str | None
    ) -> dict[str, Any]:
        chunk = self._object(content, scores, reason)
        return {**chunk, "usage": None} if self._question.include_usage else chunk

    def _object(
        self, content: dict[str, Any], scores: list[Score], reason: str | None
    ) -> dict[str, Any]:
        asked = self._question.scores is not None
        told: dict[str, Any] | None = None
        if asked and (scores or not self._question.stream):
            told = chat_scores(scores) if self._chat else self._completion_scores(scores)
        choice = {"index": 0, **content, "logprobs": told, "finish_reason": reason}
        return {**self._head, "choices": [choice]}

    def _completion_scores(self, scores: list[Score]) -> dict[str, Any]:
        tops = [_table(score.top) for score in scores] if self._question.scores else None
        return {
            "tokens": [score.text for score in scores],
            "token_logprobs": [score.logprob for score in scores],
            "top_logprobs": tops,
            "text_offset": [score.start for score in scores],
        }


def chat_scores(scores: list[Score]) -> dict[str, Any]:
    """The logprobs of a chat."""
    content = [
        {**_token(score.text, score.logprob), "top_logprobs": [_token(*one) for one in score.top]}
        for score in scores
    ]
    return {"content": content, "refusal": None}


def _table(top: list[tuple[str, float]]) -> dict[str, float]:
    """Log-probabilities by text; of tokens that have the same text the likeliest."""
    table: dict[str, float] = {}
    for text, logprob in top:
        table.setdefault(text, logprob)
    return table


def _token(text: str, logprob: float) -> dict[str, Any]:
    whole = "\ufffd" not in text  # part of a character: its bytes are not known here
    return {"token": text, "logprob": logprob, "bytes": list(text.encode()) if whole else None}


def usage(end: End) -> dict[str, Any]:
    """The counts of tokens of an answer."""
    return {
        "prompt_tokens": end.prompt,
        "completion_tokens": end.written,
        "total_tokens": end.prompt + end.written,
        "prompt_tokens_details": {"cached_tokens": end.cached},
    }
