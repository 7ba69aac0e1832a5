"""Fields of OpenAI's API that this server lacks: those that would change an answer are refused by
name unless they ask for nothing, those that would not are ignored.
"""

from __future__ import annotations

from typing import Any

from edgeqat.errors import nearest
from edgeqat.serve.fields import refuse, shown

# The values with which a field asks for nothing; an empty list, object or text always does.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": (),
    "grammar": (),
    "json_schema": (),
    "logit_bias": (),
    "min_p": (0,),
    "modalities": (["text"],),
    "n": (1,),
    "presence_penalty": (0,),
    "reasoning_effort": ("none",),
    "repeat_penalty": (1,),
    "repetition_penalty": (1,),
    "response_format": ({"type": "text"},),
    "suffix": (),
    "tool_choice": ("none", "auto"),
    "tools": (),
    "verbosity": ("medium",),
    "web_search_options": (),
}
_EMPTY: tuple[Any, ...] = ([], {}, "")
_WITHOUT_EFFECT = {
    "cache_prompt", "metadata", "parallel_tool_calls", "prediction", "prompt_cache_key",
    "prompt_cache_retention", "safety_identifier", "service_tier", "store", "user",
}  # fmt: skip


def check(values: dict[str, Any], supported: set[str]) -> None:
    """Refuse what would change the answer and is not supported, and names that nobody knows."""
    for name, value in values.items():
        if name in supported or name in _WITHOUT_EFFECT:
            continue
        if name not in _NEUTRAL:
            known = sorted(supported | _WITHOUT_EFFECT | set(_NEUTRAL))
            refuse(name, f"the field is unknown; {nearest(name, known)}")
        if not any(_same(value, neutral) for neutral in (*_NEUTRAL[name], *_EMPTY)):
            refuse(name, f"{shown(value)} is not supported by this server; leave the field out")


def _same(value: object, neutral: object) -> bool:
    """Equality, where true is not 1."""
    return value == neutral and isinstance(value, bool) == isinstance(neutral, bool)
