"""Results worth keeping between runs: files below EDGEQAT_CACHE (default ~/.cache/edgeqat).

A cache that cannot be read or written is only slower: nothing here raises for it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from edgeqat.errors import StorageError
from edgeqat.output import whole_file

VARIABLE = "EDGEQAT_CACHE"


def folder(kind: str) -> Path:
    """Where results of one kind are kept; it need not exist."""
    root = os.environ.get(VARIABLE) or Path.home() / ".cache" / "edgeqat"
    return Path(root) / kind


def keep(file: Path, write: Callable[[Path], object]) -> None:
    """Put a file in its place whole: `write` fills a temporary one beside it."""
    with suppress(OSError, StorageError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(file) as temporary:
            write(temporary)
