"""lm-eval, the optional package that tasks need."""

from __future__ import annotations

from importlib.util import find_spec

from edgeqat.errors import UsageError


def check_installed() -> None:
    """Refuse tasks where lm-eval is missing."""
    if find_spec("lm_eval") is None:
        raise UsageError("tasks: lm-eval is not installed; pip install 'edgeqat[eval]'")
