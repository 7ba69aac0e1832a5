"""The sequences of a batch as seats of answers: each keeps what it read, so that a later prompt
which begins alike is read from there on.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgeqat.runtime.batch import Slot
from edgeqat.runtime.sequence import shared_length
from edgeqat.serve.answer import Answer


class Seat:
    """A slot of the batch: the token ids that it holds, and whose answer it works on."""

    def __init__(self, slot: Slot) -> None:
        self.slot = slot
        self.ids: list[int] = []
        self.answer: Answer | None = None
        self.unread: list[int] = []  # tokens of the prompt, or the one that was sampled last
        self.reading = False  # a prompt, not an answer
        self.used = 0

    def take(self, answer: Answer, turn: int) -> None:
        """Go back to where the prompt parts from what was read; its last token is always read."""
        shared = min(shared_length(self.ids, answer.ids), len(answer.ids) - 1)
        self.go_back(shared)
        answer.cached = shared
        self.answer, self.unread, self.reading = answer, answer.ids[shared:], True
        self.used = turn

    def leave(self) -> None:
        """The answer is over; what was read stays."""
        self.answer, self.unread, self.reading = None, [], False

    def go_back(self, position: int) -> None:
        """Forget what was read from `position` on."""
        if position < len(self.ids):
            self.slot.rewind(position)
            del self.ids[position:]


def best(seats: Sequence[Seat], ids: list[int]) -> Seat | None:
    """The free seat for a prompt: where most of what it holds is the prompt's beginning, the one
    that shares most; else the one that was not used for the longest time. A seat that would lose
    more than it shares stays another conversation's: all prompts of a template begin alike.
    """

    def gain(seat: Seat) -> int:
        return max(0, 2 * shared_length(seat.ids, ids) - len(seat.ids))

    free = [seat for seat in seats if seat.answer is None]
    return max(free, key=lambda seat: (gain(seat), -seat.used), default=None)
