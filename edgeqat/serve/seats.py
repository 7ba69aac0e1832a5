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
        self.prompt = 0  # how many of them were its last prompt
        self.answer: Answer | None = None
        self.unread: list[int] = []  # tokens of the prompt, or the one that was sampled last
        self.reading = False  # a prompt, not an answer
        self.used = 0

    def take(self, answer: Answer, turn: int) -> None:
        """Go back to where the prompt parts from what was read; its last token is always read."""
        shared = min(shared_length(self.ids, answer.ids), len(answer.ids) - 1)
        self.go_back(shared)
        answer.cached, self.prompt = shared, len(answer.ids)
        self.answer, self.unread, self.reading = answer, answer.ids[shared:], True
        self.used = turn

    def leave(self) -> None:
        """The answer is over; what was read stays."""
        self.answer, self.unread, self.reading = None, [], False

    def forget(self) -> None:
        """Begin anew: nobody knows what the sequence holds."""
        self.leave()
        self.ids = []
        self.slot.rewind(0)

    def go_back(self, position: int) -> None:
        """Forget what was read from `position` on."""
        if position < len(self.ids):
            self.slot.rewind(position)
            del self.ids[position:]


def best(seats: Sequence[Seat], ids: list[int]) -> Seat | None:
    """The free seat for a prompt: the one that shares the longest beginning, else the one that was
    not used for the longest time. What a seat would lose of its last prompt counts against it: all
    prompts of a template begin alike, and a conversation is not given up for that. Its answer does
    not count: it may have other tokens when it comes back in the next prompt.
    """

    def gain(seat: Seat) -> int:
        shared = shared_length(seat.ids, ids)
        lost = max(0, seat.prompt - shared)
        return max(0, shared - lost)

    free = [seat for seat in seats if seat.answer is None]
    return max(free, key=lambda seat: (gain(seat), -seat.used), default=None)
