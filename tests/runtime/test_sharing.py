"""One engine in several hands: threads, forked children, copies. What went wrong here ended the
process, so that each script has one of its own.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.reduction import ForkingPickler
from threading import Event, Thread

import numpy as np
import pytest
from marks import needs_kernels

import edgeqat
from edgeqat import native
from edgeqat.errors import UsageError
from edgeqat.runtime.engine import Engine

pytestmark = needs_kernels

IDS = [5, 41, 200, 17]
BEGIN = """
import os, sys, threading, time
from multiprocessing.reduction import ForkingPickler
from edgeqat.errors import UsageError
from edgeqat.runtime.engine import Engine

folder, IDS = sys.argv[1], [5, 41, 200, 17]
"""
UNGUARDED = """
engine, told, done = Engine(folder, threads=2), set(), []

def work():
    for _ in range(40):
        try:
            engine.reset()
            done.append(len(list(engine.generate(IDS * 8, 30))))
        except Exception as error:
            told.add(str(error).split(";")[0])

threads = [threading.Thread(target=work) for _ in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
engine.reset()
print(len(list(engine.generate(IDS, 4))) <= 4)
print(sorted(told)[-1])
"""
FORK = """
engine = Engine(folder, threads=2)
list(engine.generate(IDS, 3))
taken, done = threading.Event(), threading.Event()

def hold():
    with engine.exclusive():
        taken.set()
        done.wait()

threading.Thread(target=hold).start()
taken.wait()
if os.fork() == 0:
    try:
        engine.prefill(IDS)
    except UsageError as error:
        print(error, flush=True)
    engine.close()
    with Engine(folder, threads=2) as own:
        print(own.prefill(IDS).shape, flush=True)
    del engine
    os._exit(0)
_, status = os.wait()
done.set()
engine.reset()
print(status, engine.prefill(IDS).shape)
"""
POOL = """
import multiprocessing

def work(ids):
    try:
        return len(engine.prefill(ids))
    except UsageError as error:
        return str(error)

engine = Engine(folder, threads=2)
engine.prefill(IDS)
with multiprocessing.get_context("fork").Pool(2) as pool:
    print(set(pool.map(work, [IDS] * 4)))
print(engine.position)
"""
DAEMON = """
engine = Engine(folder, threads=2)

def work():
    while True:
        engine.reset()
        engine.prefill(IDS * 30)

threading.Thread(target=work, daemon=True).start()
time.sleep(0.2)
print("end", flush=True)
"""
UNPICKLE = """
engine = ForkingPickler.loads(open(sys.argv[2], "rb").read())
print(engine.position, engine.threads, engine.context, list(engine.generate(IDS, 8)))
engine.close()
"""


def output_of(script, *arguments):
    """Lines that a Python process of its own prints; it must end well, and in time."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", BEGIN + script, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    return done.stdout.splitlines()


def test_threads_that_use_one_engine_at_once_are_told_how_to(packed_folder):
    works, told = output_of(UNGUARDED, packed_folder)
    assert works == "True"
    assert told == "engine: another call changed the sequence while it generated"


def test_exclusive_requests_of_many_threads_are_those_of_one(packed_folder):
    draw = np.random.default_rng(0)
    prompts = [draw.integers(3, 300, draw.integers(1, 40)).tolist() for _ in range(200)]

    def answer(ids):
        with engine.exclusive():
            engine.reset()
            return list(engine.generate(ids, 12))

    with Engine(packed_folder, threads=2) as engine:
        expected = [answer(ids) for ids in prompts]
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(answer, prompts)) == expected
    assert len({tuple(tokens) for tokens in expected}) > 20


def test_a_generator_may_change_its_thread(packed_folder):
    with Engine(packed_folder, threads=1) as engine:
        expected = list(engine.generate(IDS, 12))
        engine.reset()
        tokens = engine.generate(IDS, 12)
        with ThreadPoolExecutor(4) as pool:
            found = [pool.submit(next, tokens, None).result() for _ in range(13)]
    assert [token for token in found if token is not None] == expected


@pytest.mark.parametrize("change", ["reset", "prefill", "generate", "trace"])
def test_a_sequence_that_was_changed_does_not_go_on(packed_folder, change):
    calls = {
        "reset": lambda: engine.reset(),
        "prefill": lambda: engine.prefill([7]),
        "generate": lambda: next(engine.generate([7], 3)),
        "trace": lambda: engine.trace([7]),
    }
    with Engine(packed_folder, threads=1) as engine:
        tokens = engine.generate(IDS, 12)
        next(tokens)
        calls[change]()
        with pytest.raises(UsageError, match=r"changed the sequence .*`with engine\.exclusive\(\)"):
            next(tokens)


def test_an_engine_is_closed_behind_the_request_of_another_thread(packed_folder):
    engine, started, found = Engine(packed_folder, threads=1), Event(), []

    def work():
        with engine.exclusive():
            started.set()
            found.extend(engine.generate(IDS, 30))

    thread = Thread(target=work)
    thread.start()
    started.wait()
    engine.close()
    thread.join()
    assert found
    with pytest.raises(UsageError, match="engine: it was closed"):
        _ = engine.position


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_child_is_told_to_open_the_folder_again(packed_folder):
    told, own, parent = output_of(FORK, packed_folder)
    assert told.startswith("engine: another process opened it") and "open the folder again" in told
    assert own == "(320,)"
    assert parent == "0 (320,)"
    told, position = output_of(POOL, packed_folder)
    assert "open the folder again in this process" in told and position == "4"


def test_a_program_ends_while_a_daemon_thread_computes(packed_folder):
    for _ in range(4):
        assert output_of(DAEMON, packed_folder) == ["end"]


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
def test_a_copy_is_an_engine_of_its_own(packed_folder, duplicate, tmp_path, monkeypatch):
    monkeypatch.chdir(packed_folder.parent)
    with Engine(packed_folder.name, threads=1, context=64, half=True) as engine:
        monkeypatch.chdir(tmp_path)
        expected = list(engine.generate(IDS, 8))
        with duplicate(engine) as other:
            assert (other.position, other.threads, other.context) == (0, 1, 64)
            assert other.matrix_bytes == engine.matrix_bytes
            assert list(other.generate(IDS, 8)) == expected
        engine.reset()
        assert list(engine.generate(IDS, 8)) == expected


def test_an_unpickled_engine_opens_the_folder_again(packed_folder, tmp_path):
    with Engine(packed_folder, threads=1, context=64) as engine:
        expected = list(engine.generate(IDS, 8))
        (tmp_path / "engine").write_bytes(ForkingPickler.dumps(engine))
        (line,) = output_of(UNPICKLE, packed_folder, tmp_path / "engine")
    assert line == f"0 1 64 {expected}"


def test_what_has_nothing_to_open_again_is_not_copied(packed_folder):
    with edgeqat.Engine.random("llama-8m", threads=1, context=32) as engine:
        held = {
            "engine: random weights": engine,
            "engine: its handle": engine._guard,
            "sampler: it cannot": native.Sampler(1.0, 0, 1.0, 0),
        }
        for words, own in held.items():
            for duplicate in (copy.copy, copy.deepcopy, ForkingPickler.dumps):
                with pytest.raises(UsageError, match=words):
                    duplicate(own)
