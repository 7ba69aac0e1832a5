"""Which sequence a prompt goes on with, and how a step is shared."""

from __future__ import annotations

import numpy as np
from serving import until

from edgeqat.runtime.sampling import GREEDY
from edgeqat.serve.answer import Answer, End, Piece
from edgeqat.serve.metrics import Metrics
from edgeqat.serve.question import Question
from edgeqat.serve.refusal import Refused
from edgeqat.serve.scheduler import PIECE, Scheduler
from edgeqat.serve.seats import Seat, best


class FakeSlot:
    def __init__(self):
        self.ids, self.position = [], 0

    def rewind(self, position):
        self.position = position
        del self.ids[position:]


class FakeBatch:
    """The next token is the count of those so far; steps are recorded."""

    context, vocabulary = 1000, 2000

    def __init__(self, size):
        self.slots, self.steps, self.engine = [FakeSlot() for _ in range(size)], [], self
        self.fails = 0

    def is_stop(self, id):
        return False

    def forward(self, parts):
        if self.fails:
            self.fails -= 1
            raise RuntimeError("a fault of ours")
        self.steps.append([(len(part.ids), part.wanted) for part in parts])
        rows = []
        for part in parts:
            part.slot.ids += part.ids
            row = np.zeros((part.wanted, self.vocabulary), np.float32)
            row[:, len(part.slot.ids)] = 1
            rows.append(row)
        return rows


class FakeWriter:
    def pieces(self, behind):
        return self

    def push(self, id):
        return f"{id} "

    def end(self):
        return ""


def seats(*held):
    made = [Seat(FakeSlot()) for _ in held]
    for number, (seat, ids) in enumerate(zip(made, held, strict=True)):
        seat.ids, seat.prompt, seat.used = list(ids), len(ids), number
    return made


def test_the_longest_shared_beginning_wins():
    one, two, three = made = seats([1, 2, 3], [1, 2, 3, 4], [])
    assert best(made, [1, 2, 3, 4, 5]) is two
    two.answer = object()
    assert best(made, [1, 2, 3, 4, 5]) is one
    one.answer = three.answer = object()
    assert best(made, [1]) is None


def test_without_one_the_oldest_goes():
    one, two = made = seats([1, 2], [3, 4])
    assert best(made, [5]) is one
    one.used = 9
    assert best(made, [5]) is two


def test_a_conversation_is_not_given_up_for_the_beginning_of_all():
    empty, held = made = seats([], [1, 2, *range(10, 30)])
    assert best(made, [1, 2, 40, 41]) is empty
    assert best(made, [1, 2, *range(10, 25)]) is held
    assert best([held], [1, 2, 40]) is held


def test_a_next_turn_comes_back_though_its_answer_has_other_tokens():
    _, held = made = seats([], [1, 2, 3, *range(10, 90)])
    held.prompt = 3
    assert best(made, [1, 2, 3, 200, 201, 202]) is held


def question(max_tokens=4):
    return Question("", [], GREEDY, max_tokens, (), None, False, False)


def started(size, queue=8):
    batch = FakeBatch(size)
    scheduler = Scheduler(batch, FakeWriter(), queue, Metrics())
    return batch, scheduler


def submit(scheduler, ids, max_tokens=4):
    events = []
    answer = Answer(question(max_tokens), ids, 900, 0.0, 1e12, events.append)
    scheduler.submit(answer)
    return answer, events


def test_a_prompt_is_read_beside_answers():
    batch, scheduler = started(2)
    _, short = submit(scheduler, [1], 6)
    _, long = submit(scheduler, list(range(150)), 2)
    scheduler.start()
    until(lambda: long and isinstance(long[-1], End))
    scheduler.close()
    assert batch.steps[0] == [(1, 1), (PIECE - 1, 0)]
    assert batch.steps[1] == [(1, 1), (PIECE, 0)]
    assert batch.steps[2] == [(1, 1), (150 - 2 * PIECE + 1, 1)]
    assert batch.steps[3] == [(1, 1), (1, 1)]
    assert short[-1] == End("length", 1, 0, 6) and long[-1] == End("length", 150, 0, 2)
    assert [event.text for event in long[:-1]] == ["150 ", "151 "]


def test_prompts_share_a_step_and_short_ones_leave_their_rest():
    batch, scheduler = started(3)
    for length in (300, 4, 300):
        submit(scheduler, list(range(length)), 1)
    scheduler.start()
    until(lambda: not scheduler.running() and not scheduler.waiting())
    scheduler.close()
    assert batch.steps[0] == [(30, 0), (4, 1), (30, 0)]
    assert batch.steps[1] == [(32, 0), (32, 0)]


def test_the_rest_of_a_known_beginning_is_read():
    batch, scheduler = started(2)
    scheduler.start()
    _, events = submit(scheduler, [5, 6, 7], 3)
    until(lambda: events and isinstance(events[-1], End))
    batch.steps.clear()
    _, events = submit(scheduler, [5, 6, 7, 3, 4, 9], 1)  # 3 and 4 are what it wrote
    until(lambda: events and isinstance(events[-1], End))
    scheduler.close()
    assert events[-1].cached == 5 and batch.steps == [[(1, 1)]]
    assert [event.text for event in events if isinstance(event, Piece)] == ["6 "]


def test_a_failed_step_costs_its_requests_alone(caplog):
    batch, scheduler = started(1)
    batch.fails = 1
    scheduler.start()
    _, events = submit(scheduler, [5, 6])
    until(lambda: events)
    assert isinstance(events[0], Refused) and events[0].status == 500
    _, events = submit(scheduler, [5, 6])
    until(lambda: events and isinstance(events[-1], End))
    assert events[-1].cached == 0
    scheduler.close()


def test_the_end_of_the_server_ends_answers():
    _, scheduler = started(1)
    _, one = submit(scheduler, [1], 800)
    _, two = submit(scheduler, [1], 800)
    scheduler.start()
    until(lambda: one)
    scheduler.close()
    assert one[-1].status == two[-1].status == 503
    try:
        submit(scheduler, [1])
    except Refused as refusal:
        assert refusal.status == 503


def test_scores_of_text_that_is_held_back_wait():
    class Scored(FakeWriter):
        def token(self, id):
            return chr(id)

        def push(self, id):
            return chr(id)

    events = []
    asked = Question("", [], GREEDY, 9, ("EN!",), 0, True, False)
    answer = Answer(asked, [1], 900, 0.0, 1e12, events.append)
    answer.begin(Scored())
    for letter in "aENEN!":
        answer.add(ord(letter), np.zeros(128, np.float32))
    told = [(event.text, [score.text for score in event.scores]) for event in events[:-1]]
    assert told == [("a", ["a"]), ("EN", ["E", "N"])]
    assert events[-1].reason == "stop" and answer.over
