"""Memory of the engine: what a short text takes, and where it ends one line of error and an engine
that goes on.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
from marks import needs_kernels

pytestmark = [needs_kernels, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]

POSITIONS = 1 << 17
BEGIN = """
import resource, sys
import numpy as np
from edgeqat import native
from edgeqat.errors import FormatError
from edgeqat.runtime.engine import Engine

def kilobytes(field):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))

def limit(more):
    most = kilobytes("VmSize") * 1024 + more if more else resource.RLIM_INFINITY
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))

def refused(work):
    try:
        work()
    except FormatError as error:
        return str(error)

folder = sys.argv[1]
"""
PROMPT = """
with Engine(folder, threads=2) as engine, Engine(folder, threads=2) as other:
    ids = np.arange(12000, dtype=np.int32) % engine.vocabulary
    logits = np.empty(engine.vocabulary, np.float32)
    engine.prefill(ids[:240])
    limit(1 << 20)
    with engine._guard.lend() as handle:
        said = refused(lambda: native.forward(handle, ids[240:], logits, False))
    limit(None)
    print(said, engine.position)
    print(np.array_equal(engine.prefill(ids[240:500]), other.prefill(ids[:500])))
"""
THREADS = """
limit(100 << 20)
print(refused(lambda: Engine(folder, threads=1000, context=64)))
limit(None)
print(Engine(folder, threads=2, context=64).threads)
"""
SHORT = """
before = kilobytes("VmRSS")
with Engine(folder, threads=1) as engine:
    engine.prefill(range(8))
    print(kilobytes("VmRSS") - before)
"""


@pytest.fixture(scope="module")
def long_folder(packed_folder, tmp_path_factory):
    """The packed model with a longest sequence of many tokens."""
    place = shutil.copytree(packed_folder, tmp_path_factory.mktemp("packed") / "long")
    config = json.loads((place / "config.json").read_text())
    config["max_position_embeddings"] = POSITIONS
    (place / "config.json").write_text(json.dumps(config))
    return place


def output_of(script, folder):
    """Lines that a Python process of its own prints."""
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + script, str(folder)],
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, (done.returncode, done.stderr)
    return done.stdout.splitlines()


def test_memory_that_ends_inside_a_thread_is_one_line_and_the_engine_goes_on(long_folder):
    line, same = output_of(PROMPT, long_folder)
    assert line == "memory: not enough of it; choose a smaller context 240"
    assert same == "True"


def test_threads_that_cannot_be_started_are_an_error(long_folder):
    line, threads = output_of(THREADS, long_folder)
    assert line.startswith("threads: 1000 could not be started (") and "give fewer" in line
    assert threads == "2"


@pytest.mark.parametrize("share", [None, 0.5])
def test_a_short_text_takes_little_of_a_long_context(share, long_folder, tmp_path):
    place = shutil.copytree(long_folder, tmp_path / "long")
    config = json.loads((place / "config.json").read_text())
    if share is not None:
        config["quantization_config"]["quant"]["adaptive"] = {"rule": "random", "share": share}
    (place / "config.json").write_text(json.dumps(config))
    (line,) = output_of(SHORT, place)
    assert int(line) < 4096
