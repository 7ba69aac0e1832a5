"""Text at the border of the program: what the terminal hands over and what it can show.

Python reads bytes that are not of the terminal's encoding as lone surrogates. They open files, but
no file in UTF-8 holds them (recipes, JSON, cards), and no tokenizer takes them.
"""

from __future__ import annotations

import io
import os
import sys

from edgeqat.errors import UsageError

_ROOT = "EDGEQAT_DATA"
_FAILING = ("strict", "surrogateescape")  # ways to write text that know no way out


def show_what_can_be_shown() -> None:
    """Print a question mark for each character that the terminal's encoding lacks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in _FAILING:
            stream.reconfigure(errors="replace")


def check(arguments: list[str]) -> None:
    """Refuse arguments, and a data folder of the environment, that are not text."""
    before = ""
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        option = name if equals else before
        _check(option.lstrip("-") if option.startswith("--") else "argument", argument)
        before = argument
    _check(_ROOT, os.environ.get(_ROOT, ""))


def _check(field: str, value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UsageError(
            f"{field}: {value!a} has bytes that are not text in the terminal's encoding; set the "
            "terminal to UTF-8, or give other text or another name"
        ) from None


def flush(code: int) -> int:
    """The exit code after all output is out: 1 where its reader has gone or its disk is full."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        # else Python would flush again, and tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            print(f"error: stdout: {error.strerror}; give another place", file=sys.stderr)
        return code or 1
    return code
