"""The engine's thread: answers in turns, a step at a time.

A step takes one token of every answer that is being written, and up to PIECE tokens of prompts that
are being read, in equal shares, so that a long prompt holds up nobody. Tokens of one sequence give
the same numbers however they are cut into steps and whatever runs beside them.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition, Thread

import numpy as np

from edgeqat.runtime.batch import Batch, Part
from edgeqat.serve.answer import STOP, Answer
from edgeqat.serve.metrics import Metrics
from edgeqat.serve.refusal import Refused
from edgeqat.serve.seats import Seat, best
from edgeqat.serve.text import Writer

PIECE = 64  # tokens of prompts in a step
_RETRY_SECONDS = 2
_logger = logging.getLogger("edgeqat")


class Scheduler:
    """Answers on a batch; `queue` of them may wait for a seat. start() begins, close() ends all."""

    def __init__(self, batch: Batch, writer: Writer, queue: int, metrics: Metrics) -> None:
        self._batch, self._writer, self._queue, self._metrics = batch, writer, queue, metrics
        self._seats = [Seat(slot) for slot in batch.slots]
        self._waiting: deque[Answer] = deque()
        self._changed = Condition()
        self._closing = False
        self._arriving = 0  # requests that are being read
        self._turn = 0
        self._thread = Thread(target=self._work, name="engine", daemon=True)
        metrics.watch(self.running, self.waiting)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def running(self) -> int:
        """Answers that have a seat."""
        return sum(seat.answer is not None for seat in self._seats)

    def waiting(self) -> int:
        """Answers that wait for one."""
        return len(self._waiting)

    @contextmanager
    def arrival(self) -> Iterator[None]:
        """While a request is read: no more of them at a time than may wait and run."""
        with self._changed:
            if self._arriving >= self._queue + len(self._seats):
                raise self._full(self._arriving)
            self._arriving += 1
        try:
            yield
        finally:
            with self._changed:
                self._arriving -= 1

    def submit(self, answer: Answer) -> None:
        """Queue an answer; Refused where too many wait, or where the server stops."""
        with self._changed:
            if self._closing:
                raise stopping()
            free = len(self._seats) - self.running()
            if len(self._waiting) >= self._queue + free:
                raise self._full(len(self._waiting))
            self._waiting.append(answer)
            self._changed.notify()

    def _full(self, waiting: int) -> Refused:
        return Refused(
            f"queue: {self.running()} requests run and {waiting} wait; try again in "
            f"{_RETRY_SECONDS} seconds",
            429,
            code="queue_full",
            headers={"Retry-After": str(_RETRY_SECONDS)},
        )

    def cancel(self, answer: Answer) -> None:
        """Nobody listens any more: the answer ends at the next step."""
        with self._changed:
            answer.cancelled = True
            if answer in self._waiting:
                self._waiting.remove(answer)

    def stop(self) -> None:
        """End all answers at the next step, and take no others; returns at once."""
        with self._changed:
            self._closing = True
            self._changed.notify()

    def close(self) -> None:
        """End all answers and the thread."""
        self.stop()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether answers are taken."""
        return self._thread.is_alive() and not self._closing

    def _work(self) -> None:
        try:
            while self._admit():
                try:
                    self._step()
                except Exception:
                    _logger.exception("engine: a step failed; its requests are refused")
                    self._fail()
        finally:
            with self._changed:
                self._closing = True
                for answer in [*(seat.answer for seat in self._seats), *self._waiting]:
                    if answer:
                        answer.refuse(stopping())

    def _admit(self) -> bool:
        """Wait for work and give seats to answers; False when the server stops."""
        with self._changed:
            self._end_late()
            while not self._closing and not self._waiting and not self.running():
                self._changed.wait()
            while self._waiting and (seat := best(self._seats, self._waiting[0].ids)):
                self._turn += 1
                self._begin(self._waiting.popleft(), seat)
            return not self._closing

    def _begin(self, answer: Answer, seat: Seat) -> None:
        try:
            seat.take(answer, self._turn)
            answer.begin(self._writer)
        except Exception:
            _logger.exception("engine: an answer could not begin")
            answer.refuse(failed())
            seat.forget()

    def _end_late(self) -> None:
        """End what nobody waits for any more, or what took too long."""
        now = time.monotonic()
        for seat in self._seats:
            if seat.answer and (seat.answer.cancelled or _is_late(seat.answer, now)):
                seat.leave()
        self._waiting = deque(answer for answer in self._waiting if not _is_late(answer, now))

    def _step(self) -> None:
        shares = self._shares()
        seats, parts = [], []
        for seat in self._seats:
            if count := shares.get(id(seat), 0 if seat.reading else len(seat.unread)):
                wanted = 1 if count == len(seat.unread) else 0
                seats.append(seat)
                parts.append(Part(seat.slot, seat.unread[:count], wanted))
        rows = self._batch.forward(parts)
        self._metrics.steps.inc()
        for seat, part, logits in zip(seats, parts, rows, strict=True):
            seat.ids += part.ids
            seat.unread = seat.unread[len(part.ids) :]
            if part.wanted:
                self._go_on(seat, logits[0])

    def _shares(self) -> dict[int, int]:
        """How many tokens each prompt may read in this step: an equal share each, and what short
        ones leave for the others.
        """
        readers = sorted((s for s in self._seats if s.reading), key=lambda s: len(s.unread))
        left, shares = PIECE, {}
        for number, seat in enumerate(readers):
            share = max(1, left // (len(readers) - number))
            shares[id(seat)] = min(share, len(seat.unread))
            left -= shares[id(seat)]
        return shares

    def _go_on(self, seat: Seat, logits: np.ndarray) -> None:
        """Sample the next token of a seat's answer."""
        answer = seat.answer
        assert answer is not None
        if seat.reading:
            self._metrics.prompt_tokens.inc(len(answer.ids))
            self._metrics.cached_tokens.inc(answer.cached)
        try:
            self._write(answer, seat, logits)
        except Exception:
            _logger.exception("engine: an answer failed")
            answer.refuse(failed())
        if answer.over:
            seat.leave()

    def _write(self, answer: Answer, seat: Seat, logits: np.ndarray) -> None:
        token = answer.choose(logits)
        if self._batch.engine.is_stop(token):
            answer.end(STOP)
            return
        now = time.monotonic()
        if seat.reading:
            self._metrics.first_token.observe(now - answer.asked)
        else:
            self._metrics.next_token.observe(now - answer.latest)
        answer.latest = now
        self._metrics.generated_tokens.inc()
        answer.add(token, logits)
        seat.unread, seat.reading = [token], False

    def _fail(self) -> None:
        """After a step that failed nobody knows what the sequences hold: they begin anew."""
        for seat in self._seats:
            if seat.answer:
                seat.answer.refuse(failed())
            seat.forget()


def _is_late(answer: Answer, now: float) -> bool:
    if now < answer.deadline:
        return False
    seconds = answer.deadline - answer.asked
    answer.refuse(
        Refused(
            f"timeout: the answer took longer than {seconds:.3g} seconds; ask for fewer tokens, or "
            "start the server with a larger --timeout",
            504,
            code="timeout",
        )
    )
    return True


def stopping() -> Refused:
    """What requests are told while the server stops."""
    return Refused("server: it is stopping; ask again later", 503, code="stopping")


def failed() -> Refused:
    """What a request is told that failed for a reason of ours."""
    return Refused("server: the engine failed; its log says why", 500, code="engine_failed")
