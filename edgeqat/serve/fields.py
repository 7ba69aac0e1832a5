"""The fields of a request's JSON object, each read with its type and range; null is absence."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

from edgeqat.serve.refusal import Refused

_SHOWN = 40  # characters of a value in a message


def shown(value: object) -> str:
    """A value as JSON, cut where it is long."""
    text = json.dumps(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def sound(text: str, param: str) -> str:
    """A text that has UTF-8; JSON can name halves of surrogate pairs, which have none."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        refuse(param, f"character {error.start} is {half}, half of a character; send whole ones")
    return text


def refuse(param: str, reason: str) -> NoReturn:
    """The field at fault, and what is wrong with it."""
    raise Refused(f"{param}: {reason}", param=param)


class Fields:
    """The object that a body holds."""

    def __init__(self, body: bytes) -> None:
        try:
            values = json.loads(body.decode(), parse_constant=_no_constant)
        except UnicodeDecodeError as error:
            raise Refused(
                f"body: byte {error.start} is not UTF-8; send JSON in UTF-8", code="invalid_utf8"
            ) from None
        except RecursionError:
            raise Refused("body: its JSON is nested too deeply; send it flat") from None
        except ValueError as error:
            raise Refused(f"body: it is no JSON ({error}); send a JSON object") from None
        if not isinstance(values, dict):
            raise Refused(f"body: {shown(values)} is no JSON object; send one")
        self.values: dict[str, Any] = {k: v for k, v in values.items() if v is not None}

    def number(self, name: str, default: float, low: float, high: float) -> float:
        """A number from `low` to `high`."""
        value = self.values.get(name, default)
        if type(value) not in (int, float):
            refuse(name, f"{shown(value)} is no number; give one from {low:g} to {high:g}")
        if not (low <= value <= high and math.isfinite(value)):
            refuse(name, f"{shown(value)} is out of range; give {low:g} to {high:g}")
        return float(value)

    def whole(self, name: str, low: int, high: int) -> int | None:
        """A whole number from `low` to `high`, or None where there is none."""
        value = self.values.get(name)
        if value is None:
            return None
        if type(value) is not int:
            refuse(name, f"{shown(value)} is no whole number; give one from {low} to {high}")
        if not low <= value <= high:
            refuse(name, f"{shown(value)} is out of range; give {low} to {high}")
        return int(value)

    def flag(self, name: str) -> bool:
        """true or false; false where it is absent."""
        value = self.values.get(name, False)
        if type(value) is not bool:
            refuse(name, f"{shown(value)} is neither true nor false; give one of them")
        return bool(value)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")
