"""The error tree: everything a user can cause, each in one line with field, value and next step.

The command line prints `str(error)` and exits with `exit_code`: 2 for wrong use or configuration,
1 for work that failed on the way. Our own invariants are asserts, never these.
"""

from __future__ import annotations

_LISTED = 24  # known names that still make a line


class EdgeQATError(Exception):
    """Base of all errors a user can cause."""

    exit_code = 1


class UsageError(EdgeQATError):
    """Wrong use or configuration: nothing was started."""

    exit_code = 2


class SchemeError(UsageError):
    """A scheme string or a bit width that does not exist."""


class RecipeError(UsageError):
    """A recipe (or an override of it) that is not valid."""


class DataError(UsageError):
    """Text or token data that is missing, empty, too short or unreadable."""


class ModelError(UsageError):
    """A model that cannot be found, read or quantized."""


class OutputError(UsageError):
    """An output place that exists already or cannot be written."""


class FormatError(EdgeQATError):
    """A packed folder that is incomplete, changed or of an unknown version."""


class TrainingError(EdgeQATError):
    """Training stopped: the loss or its gradient is not finite."""


class StorageError(EdgeQATError):
    """Writing failed on the way, for example because the disk is full."""


class AgreementError(EdgeQATError):
    """A runtime that does not compute what was trained."""


class Interrupted(EdgeQATError):
    """Ctrl-C or SIGTERM: the run stopped where it can continue."""

    exit_code = 130  # what shells use for SIGINT


def nearest(name: str, known: list[str]) -> str:
    """The hint of an unknown name: `did you mean 'x'?` or the list of known ones."""
    from difflib import get_close_matches

    match = get_close_matches(name, known, n=1, cutoff=0.7)
    if match:
        return f"did you mean '{match[0]}'?"
    more = f", ... ({len(known)} in all)" if len(known) > _LISTED else ""
    return "known: " + ", ".join(sorted(known)[:_LISTED]) + more
