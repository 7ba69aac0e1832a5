"""Conversations: the rows of chat data, in whichever of the usual layouts they come.

messages        [{"role": "user", "content": "..."}, ...]
conversations   [{"from": "human", "value": "..."}, ...]        ShareGPT
instruction     with `input` (may be empty) and `output`        Alpaca
prompt          with `completion` (or `response`), texts or lists of messages
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from edgeqat.data.characters import whole

ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "bot": "assistant", "model": "assistant",
    "chatgpt": "assistant",
    "tool": "tool", "function": "tool",
}  # fmt: skip
_LISTS = ("messages", "conversations", "conversation")
_ASKED = ("instruction", "prompt")
_ANSWERED = ("output", "completion", "response")
COLUMNS = (*_LISTS, "system", *_ASKED, "input", *_ANSWERED)  # that a table may have
LAYOUTS = "`messages`, `conversations`, `instruction` and `output`, or `prompt` and `completion`"


class ConversationError(ValueError):
    """What a row has that makes it no conversation, in words behind `has`."""


@dataclass(frozen=True)
class Conversation:
    """Messages {"role", "content"} with the roles that chat templates know."""

    messages: tuple[dict[str, str], ...]


def is_conversation(names: Iterable[str]) -> bool:
    """Whether a row or table with fields of these names holds conversations."""
    names = set(names)
    asked, answered = names & set(_ASKED), names & set(_ANSWERED)
    return bool(names & set(_LISTS)) or bool(asked and answered)


def conversation(row: Mapping[str, Any]) -> Conversation:
    """The conversation of a row; raises ConversationError."""
    name = next((name for name in _LISTS if row.get(name) is not None), None)
    if name is not None:
        return Conversation(tuple(_messages(row[name], name)))
    asked = next(name for name in _ASKED if name in row)
    answered = next(name for name in _ANSWERED if name in row)
    first = _turn(row[asked], asked, "user")
    if row.get("input") and asked == "instruction":
        first[-1]["content"] += "\n\n" + _text(row["input"], "input")
    system = _turn(row["system"], "system", "system") if row.get("system") else []
    return Conversation((*system, *first, *_turn(row[answered], answered, "assistant")))


def _turn(value: Any, field: str, role: str) -> list[dict[str, str]]:
    if isinstance(value, list):
        return _messages(value, field)
    return [{"role": role, "content": _text(value, field)}]


def _messages(values: Any, field: str) -> list[dict[str, str]]:
    if not isinstance(values, list) or not values:
        raise ConversationError(f"no list of messages in `{field}`")
    return [_message(value, field) for value in values]


def _message(value: Any, field: str) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise ConversationError(f"something in `{field}` that is no message")
    told = value.get("role", value.get("from"))
    role = ROLES.get(str(told).lower())
    if role is None:
        known = ", ".join(sorted({*ROLES.values()}))
        raise ConversationError(f"a message of role '{told}'; known are {known}: rename it")
    return {"role": role, "content": _text(value.get("content", value.get("value")), field)}


def _text(value: Any, field: str) -> str:
    if not isinstance(value, str):
        raise ConversationError(
            f"a value of type {type(value).__name__} in `{field}`, where text belongs"
        )
    return whole(value)
