"""Checkpoints of one training stage: folders `step-N`, complete or absent, the last one kept.

A checkpoint is written under a hidden name, flushed to the disk, sealed with COMPLETE (which lists
its files and their sizes) and renamed; only then does the one before it go. A process that is
killed at any moment leaves the last complete one.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgeqat.errors import StorageError
from edgeqat.train import processes

COMPLETE = "COMPLETE"
_PREFIX = "step-"


class Checkpoints:
    """The checkpoints below one folder, which need not exist yet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def latest(self) -> tuple[int, Path] | None:
        """Step and folder of the last complete checkpoint."""
        entries = [(int(p.name.removeprefix(_PREFIX)), p) for p in self.folder.glob(f"{_PREFIX}*")]
        return max((entry for entry in entries if _is_complete(entry[1])), default=None)

    def clear(self) -> None:
        """Remove all of them: their stage is done and its result kept."""
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextmanager
    def write(self, step: int) -> Iterator[Path]:
        """A folder to fill with the state at `step`; all processes enter it together.

        Raises StorageError where the disk is full; what is there stays.
        """
        before = self.latest()
        temporary, final = self.folder / f".{_PREFIX}{step}", self.folder / f"{_PREFIX}{step}"
        try:
            if processes.is_first():
                shutil.rmtree(temporary, ignore_errors=True)
            processes.wait()
            temporary.mkdir(parents=True, exist_ok=True)
            yield temporary
            processes.wait()
            if processes.is_first():
                _seal(temporary)
                shutil.rmtree(final, ignore_errors=True)  # an incomplete one, else none
                temporary.rename(final)
                _flush(self.folder)
                for path in self.folder.glob(f"{_PREFIX}*"):
                    if path != final:
                        shutil.rmtree(path, ignore_errors=True)
            processes.wait()
        except (OSError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "inline_container" not in str(error):
                raise  # not torch.save's way of saying that a write failed
            reason = getattr(error, "strerror", None) or "the disk may be full"
            kept = f"; the state of step {before[0]} is kept" if before else ""
            raise StorageError(
                f"checkpoint: writing '{final}' failed ({reason}){kept}; free some space and run "
                "the same command again"
            ) from None
        finally:
            if processes.is_first():
                shutil.rmtree(temporary, ignore_errors=True)


def _seal(folder: Path) -> None:
    sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
    (folder / COMPLETE).write_text(json.dumps(sizes), encoding="utf-8")
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        _flush(path)


def _is_complete(folder: Path) -> bool:
    try:
        sizes = json.loads((folder / COMPLETE).read_text(encoding="utf-8"))
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def _flush(path: Path) -> None:
    """Hand a file or the entries of a folder to the disk, so that a power cut keeps them."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
