"""A process of its own for every engine: its memory is its own, and libraries of different engines
never meet. Parent and child exchange lines of JSON.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from threading import Event, Timer
from typing import Any

from edgeqat.bench.engines import Job, file_bytes, open_steps, weight_bytes
from edgeqat.bench.latency import Died, Taken, Test
from edgeqat.bench.sequence import Steps
from edgeqat.errors import EdgeQATError
from edgeqat.runtime.shape import Shape

_SETTLE = 0.02  # seconds in which the threads of the engine before stop spinning
_LONGEST = 3600  # seconds for an answer: opening, or one test, on a slow board
_FAREWELL = 5  # seconds that a process takes to end behind its last word
_CODE = "from edgeqat.bench.process import serve; serve()"


class Worker:
    """A contender in a child process, whose stderr goes to the file `errors`; `spare` is a job for
    a second process, where the first one dies.
    """

    def __init__(self, job: Job, errors: Path, spare: Job | None = None) -> None:
        self.name = job.engine
        self._errors, self._spare = errors, spare
        self.facts: dict[str, Any] = {}
        self.weight_bytes = self._peak = 0
        try:
            self._open(job)
        except Died:
            if not self.reopen():
                raise

    def _open(self, job: Job) -> None:
        threads = str(job.threads)
        with open(self._errors, "wb") as file:
            self._child = subprocess.Popen(
                [sys.executable, "-c", _CODE],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
            )
        opened = self._ask({"job": asdict(job)})
        self.facts["isa"] = opened["isa"]
        self.facts.setdefault("file_bytes", opened["file_bytes"])
        self.weight_bytes = opened["weight_bytes"]

    def run(self, test: Test) -> Taken:
        """What the timed part of a test took."""
        answer = self._ask({"test": asdict(test)})
        self._peak = answer["peak"]
        return Taken(*answer["taken"])

    def reopen(self) -> bool:
        """The spare job in a process of its own, once."""
        job, self._spare = self._spare, None
        if job is not None:
            self._open(job)
        return job is not None

    def peak_rss(self) -> int:
        """Bytes of memory the process has held at most."""
        return self._peak

    def close(self) -> None:
        """End the process."""
        self._child.kill()
        self._child.wait()
        for pipe in (self._child.stdin, self._child.stdout):
            with suppress(OSError):  # what it was not told any more
                if pipe is not None:
                    pipe.close()

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """The answer to a question; Died where none comes, EdgeQATError where it is one."""
        assert self._child.stdin is not None and self._child.stdout is not None
        late = Event()

        def give_up() -> None:
            late.set()
            self._child.kill()

        timer = Timer(_LONGEST, give_up)
        timer.daemon = True
        timer.start()
        try:
            self._child.stdin.write(json.dumps(question) + "\n")
            self._child.stdin.flush()
            answer = json.loads(self._child.stdout.readline())
        except (OSError, ValueError):  # the pipe has an end, or half an answer in it
            raise Died(self._reason(late.is_set())) from None
        finally:
            timer.cancel()
        if "error" in answer:
            self.close()
            raise EdgeQATError(answer["error"])
        return answer

    def _reason(self, late: bool) -> str:
        """Why there is no answer; the process has ended afterwards."""
        code: int | None = None
        with suppress(subprocess.TimeoutExpired):  # it lives, and has closed its end
            code = self._child.wait(_FAREWELL)
        self.close()
        if late:
            return f"it gave no answer within {_LONGEST} s"
        if code is None:
            return "its process closed the connection"
        return last_words(code, self._errors.read_text(encoding="utf-8", errors="replace"))


def last_words(code: int, told: str) -> str:
    """Why a process ended, from its exit code and what it told on stderr."""
    lines = told.strip().splitlines()
    if code == -signal.SIGKILL and not lines:
        return "not enough memory"
    if code < 0:
        return f"its process died of signal {-code} ({signal.strsignal(-code)})"
    return lines[-1] if lines else f"its process ended with {code}"


def serve() -> None:
    """The child: opens what it is told to, runs tests, answers on the stdout it was given; what
    libraries print goes to stderr.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    steps: Steps | None = None
    for line in sys.stdin:
        question = json.loads(line)
        try:
            if steps is None:
                job = question["job"]
                opened = Job(**{**job, "shape": Shape(**job["shape"])})
                steps = open_steps(opened)
                answer = {
                    "isa": steps.isa,
                    "weight_bytes": weight_bytes(opened, steps),
                    "file_bytes": file_bytes(opened, steps),
                }
            else:
                taken = _timed(steps, Test(**question["test"]))
                answer = {"taken": taken, "peak": steps.peak_rss()}
        except Exception as error:
            words = " ".join(str(error).split()) or type(error).__name__
            answer = {"error": words[:300]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _timed(steps: Steps, test: Test) -> Taken:
    time.sleep(_SETTLE)
    steps.seek(test.depth)
    start, spent = time.perf_counter(), time.process_time()
    if test.prompt:
        steps.prefill(test.prompt)
    else:
        steps.decode(test.tokens)
    return Taken(time.perf_counter() - start, time.process_time() - spent)
