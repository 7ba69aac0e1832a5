"""llama.cpp as a contender of `edgeqat bench` through its own llama-bench, where that is on PATH
and llama-cpp-python is not installed. Each run is a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from functools import partial
from typing import Any

from edgeqat.bench.engines import KINDS, LLAMA_BENCH, Job
from edgeqat.bench.latency import Taken, Test
from edgeqat.bench.process import last_words
from edgeqat.errors import EdgeQATError


class LlamaBench:
    """A contender whose every run is a llama-bench."""

    def __init__(self, job: Job) -> None:
        kind = KINDS[job.engine]
        assert job.file is not None
        self.name = job.engine
        self.facts: dict[str, Any] = {"isa": LLAMA_BENCH}
        self.weight_bytes = int(kind.bytes * job.shape.weights)
        self._command = [
            *(LLAMA_BENCH, "-m", job.file, "-t", str(job.threads), "-r", "1", "-o", "json"),
            *("-ctk", kind.kv, "-ctv", kind.kv),
        ]
        self._kv, self._peak = kind.kv, 0

    def run(self, test: Test) -> Taken:
        """Seconds of the timed part, from what llama-bench reports."""
        counts = ["-p", test.prompt, "-n", test.tokens, "-d", test.depth]
        flash = "0" if test.depth and self._kv == "f16" else "1"  # each where it is faster
        output, end = self._output([*self._command, "-fa", flash, *map(str, counts)])
        try:
            return Taken(float(json.loads(output)[0]["avg_ns"]) / 1e9)
        except (ValueError, LookupError, TypeError):
            raise EdgeQATError(f"{LLAMA_BENCH}: {end}") from None

    def reopen(self) -> bool:
        """llama-bench has no other way."""
        return False

    def peak_rss(self) -> int:
        """Of the largest of its runs so far."""
        return self._peak

    def _output(self, command: list[str]) -> tuple[str, str]:
        """What a command prints on stdout, and how it ended; its memory is noted."""
        text = partial(tempfile.TemporaryFile, "w+", encoding="utf-8", errors="replace")
        with text() as output, text() as error:
            process = subprocess.Popen(command, stdout=output, stderr=error)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            self._peak = max(self._peak, usage.ru_maxrss * 1024)
            output.seek(0)
            error.seek(0)
            return output.read(), last_words(process.returncode, error.read())
