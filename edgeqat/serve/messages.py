"""The messages of a chat as the model's template takes them: a role and a text each."""

from __future__ import annotations

from typing import Any

from edgeqat.serve.fields import refuse, shown, sound

# `developer` is OpenAI's newer word for what chat templates call `system`.
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant",
          "tool": "tool"}  # fmt: skip
_CALLS = ("tool_calls", "function_call", "audio")


def messages_of(given: Any) -> list[dict[str, str]]:
    """The checked messages of a request."""
    if not isinstance(given, list):
        refuse("messages", f"{shown(given)} is no list; give a list of messages")
    if not given:
        refuse("messages", "the list is empty; give at least one message")
    return [_message(entry, f"messages[{number}]") for number, entry in enumerate(given)]


def _message(entry: Any, where: str) -> dict[str, str]:
    if not isinstance(entry, dict):
        refuse(where, f"{shown(entry)} is no object; give role and content")
    role = entry.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        refuse(f"{where}.role", f"{shown(role)} is unknown; choose from {', '.join(_ROLES)}")
    for name in _CALLS:
        if entry.get(name):
            refuse(f"{where}.{name}", "it is not supported by this server; send text alone")
    return {"role": _ROLES[role], "content": _text(entry.get("content"), f"{where}.content")}


def _text(content: Any, where: str) -> str:
    if isinstance(content, str):
        return sound(content, where)
    if not isinstance(content, list):
        refuse(where, f"{shown(content)} is no text; give a string or a list of text parts")
    texts = []
    for number, part in enumerate(content):
        spot = f"{where}[{number}]"
        if not isinstance(part, dict) or part.get("type") != "text":
            kind = part.get("type") if isinstance(part, dict) else part
            refuse(spot, f"a part of type {shown(kind)} is not supported; send parts of type text")
        if not isinstance(part.get("text"), str):
            refuse(f"{spot}.text", f"{shown(part.get('text'))} is no text; give a string")
        texts.append(sound(part["text"], f"{spot}.text"))
    return "".join(texts)
