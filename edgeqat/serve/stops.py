"""Texts that end an answer: what might be the beginning of one is held back until it is known."""

from __future__ import annotations

from collections.abc import Sequence


class Stops:
    """Pieces of an answer in, what may be shown of them out."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""

    def feed(self, piece: str) -> tuple[str, bool]:
        """What is shown now, and whether a stop has come: all in front of it was shown then."""
        self._held += piece
        places = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if places:
            text, self._held = self._held[: min(places)], ""
            return text, True
        kept = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        end = len(self._held) - kept
        text, self._held = self._held[:end], self._held[end:]
        return text, False

    def flush(self) -> str:
        """What was held back, when nothing more comes."""
        text, self._held = self._held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """The longest end of a text that a stop begins with."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
