"""Places of results: refused before anything is computed, and files whole or absent.

A place that is a link, or below one, stands for what it leads to: results are put together there,
on the same disk, and the link stays.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgeqat.errors import EdgeQATError, OutputError, StorageError


def real(path: Path) -> Path:
    """Where a path leads when every link of it is followed, also to what is not there yet."""
    return Path(os.path.realpath(path))


def check_file(
    *files: Path | None, overwrite: bool = True, way: str = "choose another --output"
) -> None:
    """Refuse a file (None: none is asked for) that cannot be written, or must not be replaced;
    `way` says what to do then.
    """
    for file in files:
        if file is None:
            continue
        parent = real(file).parent
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
    place = real(file)
    temporary = place.with_name(f".{os.getpid()}.{place.name}")  # the suffix stays
    with storage(file):
        try:
            yield temporary
            temporary.replace(place)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(file: Path, text: str) -> None:
    """Write a text file."""
    with whole_file(file) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(file: Path, values: Any, default: Callable[[Any], Any] | None = None) -> None:
    """Write a JSON file; `default` turns what JSON does not know into what it does."""
    write_text(file, json_text(values, default=default))


def json_text(
    values: Any, indent: int | None = 2, default: Callable[[Any], Any] | None = None
) -> str:
    """The text of a JSON file (indent None: a line of one); numbers that are not finite, which JSON
    does not have, are null.
    """
    known = None if default is None else lambda value: _finite(default(value))
    text = json.dumps(
        _finite(values), indent=indent, ensure_ascii=False, allow_nan=False, default=known
    )
    return text + "\n"


def _finite(values: Any) -> Any:
    if isinstance(values, dict):
        return {key: _finite(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [_finite(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values


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
