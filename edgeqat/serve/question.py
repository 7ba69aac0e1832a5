"""What a request asks for, read from its body and checked once."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any

from edgeqat.runtime.sampling import Sampling
from edgeqat.serve import unsupported
from edgeqat.serve.fields import Fields, refuse, shown, sound
from edgeqat.serve.messages import messages_of
from edgeqat.serve.refusal import Refused

COMPLETION_TOKENS = 16  # OpenAI's default; an answer of a chat may fill the context
_MOST_SCORES = 20
_MOST_STOPS, _LONGEST_STOP = 4, 1000
_MOST_TOKENS = 2**31 - 1
_SHARED = {
    "model", "stream", "stream_options", "stop", "seed", "temperature", "top_p", "top_k",
    "max_tokens", "logprobs",
}  # fmt: skip
_CHAT = _SHARED | {"messages", "max_completion_tokens", "top_logprobs"}
_COMPLETION = _SHARED | {"prompt"}


@dataclass(frozen=True)
class Question:
    """A prompt or messages, and how to answer. scores: how many likeliest tokens are told beside
    each token, None where no logprobs are asked for.
    """

    prompt: str | list[int]
    messages: list[dict[str, str]] | None
    sampling: Sampling
    max_tokens: int | None
    stops: tuple[str, ...]
    scores: int | None
    stream: bool
    include_usage: bool

    @property
    def chat(self) -> bool:
        """Whether it is one of a chat."""
        return self.messages is not None


def read(body: bytes, chat: bool, name: str) -> Question:
    """The question of a body, for the model of that name; Refused where it has none."""
    fields = Fields(body)
    unsupported.check(fields.values, _CHAT if chat else _COMPLETION)
    _check_model(fields.values.get("model", name), name)
    stream = fields.flag("stream")
    most = _max_tokens(fields)
    return Question(
        "" if chat else _prompt(_needed(fields, "prompt")),
        messages_of(_needed(fields, "messages")) if chat else None,
        _sampling(fields),
        most if most is not None or chat else COMPLETION_TOKENS,
        _stops(fields.values.get("stop", [])),
        _chat_scores(fields) if chat else fields.whole("logprobs", 0, _MOST_SCORES),
        stream,
        _include_usage(fields.values.get("stream_options"), stream),
    )


def _needed(fields: Fields, name: str) -> Any:
    if name not in fields.values:
        refuse(name, "it is missing; the request needs it")
    return fields.values[name]


def _check_model(model: Any, name: str) -> None:
    if not isinstance(model, str):
        refuse("model", f"{shown(model)} is no text; give '{name}'")
    if model != name:
        raise Refused(
            f"model: {shown(model)} is unknown here; use '{name}'", 404, "model", "model_not_found"
        )


def _prompt(given: Any) -> str | list[int]:
    if isinstance(given, str):
        return sound(given, "prompt")
    if not isinstance(given, list):
        refuse("prompt", f"{shown(given)} is no prompt; give a text or a list of token ids")
    if not given:
        refuse("prompt", "the list is empty; give at least one token id")
    if not all(type(entry) is int for entry in given):
        refuse("prompt", "a list is taken for token ids; send each text in a request of its own")
    return given


def _sampling(fields: Fields) -> Sampling:
    seed = fields.whole("seed", -(2**63), 2**64 - 1)
    return Sampling(
        fields.number("temperature", 1.0, 0, 2),
        fields.whole("top_k", 0, _MOST_TOKENS) or 0,
        fields.number("top_p", 1.0, 0, 1),
        secrets.randbits(64) if seed is None else seed % 2**64,
    )


def _max_tokens(fields: Fields) -> int | None:
    newer = fields.whole("max_completion_tokens", 1, _MOST_TOKENS)
    older = fields.whole("max_tokens", 1, _MOST_TOKENS)
    if newer is not None and older is not None and newer != older:
        refuse("max_tokens", f"{older} is not the max_completion_tokens of {newer}; give one")
    return older if newer is None else newer


def _stops(given: Any) -> tuple[str, ...]:
    stops = [given] if isinstance(given, str) else given
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        refuse("stop", f"{shown(given)} is no text; give a string or up to {_MOST_STOPS} strings")
    if len(stops) > _MOST_STOPS:
        refuse("stop", f"{len(stops)} strings are too many; give up to {_MOST_STOPS}")
    for stop in stops:
        if not 0 < len(stop) <= _LONGEST_STOP:
            refuse("stop", f"a string has {len(stop)} characters; give 1 to {_LONGEST_STOP}")
        sound(stop, "stop")
    return tuple(stops)


def _chat_scores(fields: Fields) -> int | None:
    asked = fields.flag("logprobs")
    count = fields.whole("top_logprobs", 0, _MOST_SCORES)
    if count is not None and not asked:
        refuse("top_logprobs", f"{count} needs logprobs; set logprobs to true")
    return (count or 0) if asked else None


def _include_usage(options: Any, stream: bool) -> bool:
    if options is None:
        return False
    if not isinstance(options, dict):
        refuse("stream_options", f"{shown(options)} is no object; give include_usage in one")
    if not stream:
        refuse("stream_options", "the answer is not streamed; set stream to true or leave it out")
    asked = options.get("include_usage") or False
    if type(asked) is not bool:
        refuse("stream_options.include_usage", f"{shown(asked)} is neither true nor false")
    return asked
