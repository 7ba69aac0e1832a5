"""One sequence of tokens on an open model: what every engine of `edgeqat bench` offers."""

from __future__ import annotations

from abc import ABC, abstractmethod

_STRIDE = 7919  # a prime: neighbouring positions get ids far apart


class Steps(ABC):
    """An open model and its one sequence of tokens."""

    isa: str
    vocabulary: int

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
