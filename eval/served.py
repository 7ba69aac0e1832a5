"""A running `edgeqat serve` for the scripts beside this one."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def served(folder: str, *options: str) -> Iterator[tuple[str, int]]:
    """A server of its own process on a free port: its address and process number. It is to end
    with 0 behind the block.
    """
    command = [sys.executable, "-m", "edgeqat.cli", "serve", folder, "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        found = re.search(r"http://\S+", process.stdout.readline())
        if found is None:
            raise SystemExit("error: the server did not start; what it said stands above")
        try:
            yield found.group(), process.pid
        finally:
            process.terminate()
            ended = process.wait(timeout=30)
    if ended:
        raise SystemExit(f"error: the server ended with {ended}")
