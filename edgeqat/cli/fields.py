"""The fields of a recipe, for `edgeqat recipes --fields` and the manual."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel

from edgeqat.recipe.recipe import Recipe


class Field(NamedTuple):
    """A field that a recipe or --set may give: dotted name, what it takes, default in JSON (empty:
    the field may be absent), meaning.
    """

    name: str
    takes: str
    default: str
    meaning: str


def fields(section: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[Field]:
    """All fields, in the order of the recipe."""
    for name, info in section.model_fields.items():
        inner = next((t for t in _types(info.annotation) if _is_section(t)), None)
        if inner is not None:
            yield from fields(inner, f"{prefix}{name}.")
            continue
        takes = " or ".join(_taken(t) for t in _types(info.annotation))
        value = info.get_default(call_default_factory=True)
        default = "" if value is None else json.dumps(value)
        yield Field(prefix + name, takes, default, info.description or "")


def _types(annotation: Any) -> list[Any]:
    if get_origin(annotation) in (Union, UnionType):
        return [kind for kind in get_args(annotation) if kind is not type(None)]
    return [annotation]


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _taken(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return ", ".join(map(str, get_args(kind)))
    if get_origin(kind) is dict:
        name, value = get_args(kind)
        return f"mapping of {_taken(name)} to {_taken(value)}"
    words = {str: "text", int: "whole number", float: "number", bool: "true, false"}
    return words.get(kind) or f"list of {_taken(get_args(kind)[0])}s"
