"""llama.cpp as a contender of `edgeqat bench` through its own llama-bench, where that is on PATH
and llama-cpp-python is not installed. Each run is a process of its own.
"""

from __future__ import annotations

import json
import resource
import subprocess
from typing import Any

from edgeqat.errors import EdgeQATError
from edgeqat.evaluate.engines import KINDS, LLAMA_BENCH, Job
from edgeqat.evaluate.latency import Test


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
            *("-fa", "1", "-ctk", kind.kv, "-ctv", kind.kv),
        ]

    def run(self, test: Test) -> float:
        """Seconds of the timed part, from what llama-bench reports."""
        counts = ["-p", test.prompt, "-n", test.tokens, "-d", test.depth]
        command = [*self._command, *map(str, counts)]
        done = subprocess.run(command, capture_output=True, text=True)
        try:
            return float(json.loads(done.stdout)[0]["avg_ns"]) / 1e9
        except (ValueError, LookupError, TypeError):
            reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
            raise EdgeQATError(
                f"engine: '{self.name}' failed ({LLAMA_BENCH}: {reason}); choose others"
            ) from None

    def peak_rss(self) -> int:
        """Of the largest llama-bench so far."""
        return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
