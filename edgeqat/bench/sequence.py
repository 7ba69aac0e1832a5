"""One sequence of tokens on an open model: what every engine of `edgeqat bench` offers."""

from __future__ import annotations

import resource
from abc import ABC, abstractmethod
from pathlib import Path

_STRIDE = 7919  # a prime: neighbouring positions get ids far apart


class Steps(ABC):
    """An open model and its one sequence of tokens."""

    isa: str
    vocabulary: int
    embedding_bytes: int = 0  # of an embedding that is not the head's matrix

    @property
    @abstractmethod
    def position(self) -> int:
        """Tokens of the sequence so far."""

    @abstractmethod
    def seek(self, depth: int) -> None:
        """Make the sequence `depth` tokens long."""

    @abstractmethod
    def append(self, ids: list[int]) -> None:
        """Append token ids, at least one, at once."""

    def peak_rss(self) -> int:
        """Bytes that one user of this engine needs: what its process has held at most."""
        return process_peak()

    def prefill(self, count: int) -> None:
        """Append `count` tokens at once."""
        if count:
            self.append(self._ids(count))

    def decode(self, count: int) -> None:
        """Append `count` tokens, one after the other."""
        for id in self._ids(count):
            self.append([id])

    def _ids(self, count: int) -> list[int]:
        positions = range(self.position, self.position + count)
        return [position * _STRIDE % self.vocabulary for position in positions]


def process_peak() -> int:
    """Bytes this process has held at most. Not ru_maxrss where there is better: a child inherits
    that from its parent.
    """
    try:
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
