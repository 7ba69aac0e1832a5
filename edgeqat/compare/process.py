"""A process of its own for every job: its peak memory is its own, libraries of different peers
never meet, and one that crashes costs its own row.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgeqat.bench.process import last_words
from edgeqat.compare.work import Job, compute
from edgeqat.errors import EdgeQATError

_CODE = "from edgeqat.compare.process import serve; serve()"
_LONGEST = 300  # characters of a reason


def run(job: Job, log: Path) -> dict[str, Any]:
    """The result of a job; what its process prints goes to the file `log`.

    Raises EdgeQATError with the reason where there is none.
    """
    threads = str(job.threads)
    with open(log, "wb") as file:
        child = subprocess.Popen(
            [sys.executable, "-c", _CODE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=file,
            env={**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
        )
    try:
        output, _ = child.communicate(json.dumps(asdict(job)).encode())
    finally:
        with suppress(OSError):
            child.kill()
        child.wait()
    try:
        answer = json.loads(output)
    except ValueError:
        told = log.read_text(encoding="utf-8", errors="replace")
        raise EdgeQATError(last_words(child.returncode, told)[:_LONGEST]) from None
    if "error" in answer:
        raise EdgeQATError(answer["error"])
    return answer


def serve() -> None:
    """The child: computes the job on stdin, answers on the stdout it was given; what libraries
    print goes to stderr.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    from edgeqat import log

    log.setup()
    try:
        answer = compute(Job.from_json(json.load(sys.stdin)))
    except Exception as error:
        import traceback

        traceback.print_exc()
        words = " ".join(str(error).split()) or type(error).__name__
        answer = {"error": words[:_LONGEST]}
    answers.write(json.dumps(answer))
    answers.flush()
