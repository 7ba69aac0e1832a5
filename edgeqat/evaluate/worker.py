"""A process of its own for every engine: its memory is its own, and libraries of different engines
never meet. Parent and child exchange lines of JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgeqat.errors import EdgeQATError, UsageError
from edgeqat.evaluate.engines import Job, file_bytes, open_steps, weight_bytes
from edgeqat.evaluate.latency import Test
from edgeqat.evaluate.steps import Steps
from edgeqat.runtime.shape import Shape

_SETTLE = 0.02  # seconds in which the threads of the engine before stop spinning
_CODE = "from edgeqat.evaluate.worker import serve; serve()"


class Worker:
    """A contender in a child process, whose stderr goes to the file `errors`."""

    def __init__(self, job: Job, errors: Path) -> None:
        self.name = job.engine
        threads = str(job.threads)
        self._errors = errors
        with open(errors, "wb") as file:
            self._child = subprocess.Popen(
                [sys.executable, "-c", _CODE],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
            )
        self.facts: dict[str, Any] = {}
        opened = self._ask({"job": asdict(job)})
        self.facts = {name: opened[name] for name in ("isa", "file_bytes")}
        self.weight_bytes = opened["weight_bytes"]
        self._peak = 0

    def run(self, test: Test) -> float:
        """Seconds that the timed part of a test took."""
        answer = self._ask({"test": asdict(test)})
        self._peak = answer["peak"]
        return answer["seconds"]

    def peak_rss(self) -> int:
        """Bytes of memory the process has held at most."""
        return self._peak

    def close(self) -> None:
        """End the process."""
        self._child.kill()
        self._child.communicate()

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self._child.stdin is not None and self._child.stdout is not None
        try:
            self._child.stdin.write(json.dumps(question) + "\n")
            self._child.stdin.flush()
            line = self._child.stdout.readline()
        except OSError:
            line = ""
        answer = json.loads(line) if line else {"error": self._last_words()}
        if "error" in answer:
            self.close()
            reason = answer["error"]
            if answer.get("usage"):
                raise UsageError(reason)
            raise EdgeQATError(
                f"engine: '{self.name}' failed ({reason}); choose others with --engine"
            )
        return answer

    def _last_words(self) -> str:
        code = self._child.wait()
        lines = self._errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        if lines:
            return lines[-1]
        return "not enough memory" if code == -9 else f"its process ended with {code}"


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
                seconds = _timed(steps, Test(**question["test"]))
                answer = {"seconds": seconds, "peak": steps.peak_rss()}
        except Exception as error:
            words = " ".join(str(error).split()) or type(error).__name__
            answer = {"error": words[:300], "usage": isinstance(error, UsageError)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _timed(steps: Steps, test: Test) -> float:
    time.sleep(_SETTLE)
    steps.seek(test.depth)
    start = time.perf_counter()
    if test.prompt:
        steps.prefill(test.prompt)
    else:
        steps.decode(test.tokens)
    return time.perf_counter() - start
