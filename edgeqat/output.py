"""Places of results: refused before anything is computed, and files whole or absent."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgeqat.errors import EdgeQATError, OutputError, StorageError


def check_file(
    *files: Path | None, overwrite: bool = True, way: str = "choose another --output"
) -> None:
    """Refuse a file (None: none is asked for) that cannot be written, or must not be replaced;
    `way` says what to do then.
    """
    for file in files:
        if file is None:
            continue
        parent = file.absolute().parent
        if not parent.is_dir():
            raise OutputError(f"output: the folder of '{file}' does not exist; make it first")
        if not os.access(parent, os.W_OK):
            raise OutputError(f"output: '{file}' cannot be written; choose another folder")
        if file.exists() and not overwrite:
            raise OutputError(f"output: '{file}' exists; {way}")
        if file.is_dir():
            raise OutputError(f"output: '{file}' is a folder; name a file")


def check_folder(folder: Path) -> None:
    """Refuse a folder for files that is a file; one that is not there will be made."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"output: '{folder}' is a file; name a folder")


@contextmanager
def whole_file(file: Path) -> Iterator[Path]:
    """A temporary file that becomes `file` when the block ends well and vanishes when it does not.

    Raises StorageError where writing fails.
    """
    temporary = file.with_name(f".{os.getpid()}.{file.name}")  # the suffix stays
    with storage(file):
        try:
            yield temporary
            temporary.replace(file)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(file: Path, text: str) -> None:
    """Write a text file."""
    with whole_file(file) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(file: Path, values: Any, default: Any = None) -> None:
    """Write a JSON file; `default` turns what JSON does not know into what it does."""
    write_text(file, json.dumps(values, indent=2, ensure_ascii=False, default=default) + "\n")


@contextmanager
def storage(target: Path) -> Iterator[None]:
    """Failures of the system in the block (a full disk) as a StorageError of one line."""
    try:
        yield
    except Exception as error:
        # libraries in Rust say so in words only
        if isinstance(error, EdgeQATError) or not (
            isinstance(error, OSError) or "(os error " in str(error)
        ):
            raise
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise StorageError(
            f"output: writing '{target}' failed ({reason}); free some space and run the same "
            "command again"
        ) from None
