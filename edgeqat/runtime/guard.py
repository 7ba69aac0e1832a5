"""The handle of one open C++ engine: one thread at a time, in the process that opened it.

An engine has one sequence and one pool of threads. Two callers at once would overwrite each other,
and a forked child has the memory of the pool without its threads. Copies have the handle without
the right to free it, so there are none.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from edgeqat import native
from edgeqat.errors import UsageError


class Guard:
    """Lends the handle to one thread at a time; `changes` counts what altered the sequence."""

    def __init__(self, handle: int) -> None:
        self._handle, self._process = handle, os.getpid()
        self._lock = threading.RLock()
        self.changes = 0

    @contextmanager
    def lend(self) -> Iterator[int]:
        """The handle, while no other thread has it; a thread that has it may ask again."""
        if os.getpid() != self._process:  # first: the lock may be held for ever in a child
            raise UsageError(
                "engine: another process opened it before a fork; open the folder again in this "
                "process"
            )
        with self._lock:
            if not self._handle:
                raise UsageError("engine: it was closed; open the folder again")
            yield self._handle

    @contextmanager
    def change(self) -> Iterator[int]:
        """The handle, for what alters the sequence."""
        with self.lend() as handle:
            self.changes += 1
            yield handle

    def free(self, patience: float = -1) -> None:
        """Free the memory, once. After `patience` seconds (-1: none) in which another thread used
        it, it stays; a child of the process that opened it leaves it alone.
        """
        if os.getpid() != self._process or not self._lock.acquire(timeout=patience):
            return
        try:
            handle, self._handle = self._handle, 0
            if handle:
                native.close(handle)
        finally:
            self._lock.release()

    def __reduce__(self) -> NoReturn:
        raise UsageError("engine: its handle cannot be copied; open the folder again")
