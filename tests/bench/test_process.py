"""Engines in processes of their own that die, hang up or never answer: a reason, and no waiting."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edgeqat.bench import process
from edgeqat.bench.engines import Job
from edgeqat.bench.latency import Died
from edgeqat.bench.latency import Test as Timed
from edgeqat.errors import EdgeQATError
from edgeqat.runtime.shape import Shape

JOB = Job("torch-bf16", Shape(320, 64, 2, 4, 2, 96, 16, context=128), 1, 128, "w4a8kv4")
OPENED = '{"isa": "none", "weight_bytes": 8, "file_bytes": 9}'
TIMED = '{"taken": [0.5, 0.9], "peak": 7}'
SEGFAULT = "its process died of signal 11 (Segmentation fault)"
CHILD = """
import json, os, signal, sys, time
for number, line in enumerate(sys.stdin):
    if number == {at}:
        {fault}
    print({timed!r} if number else {opened!r}, flush=True)
"""
FAULTS = {
    "a signal": ("os.kill(os.getpid(), signal.SIGSEGV)", SEGFAULT),
    "an exit": ("sys.exit(3)", "its process ended with 3"),
    "an exit with words": ("sys.exit('no such model')", "no such model"),
    "a signal behind words": (
        "print('loading', file=sys.stderr, flush=True); os.kill(os.getpid(), signal.SIGSEGV)",
        SEGFAULT,
    ),
    "memory": ("os.kill(os.getpid(), signal.SIGKILL)", "not enough memory"),
    "a closed pipe": ("os.close(1); time.sleep(60)", "its process closed the connection"),
    "half an answer": ("os.write(1, b'{\"sec'); os.close(1); sys.exit(0)", "ended with 0"),
    "silence": ("time.sleep(60)", "it gave no answer within"),
}


@pytest.fixture(autouse=True)
def _hurry(monkeypatch):
    monkeypatch.setattr(process, "_FAREWELL", 0.5)


def child(monkeypatch, at, fault):
    monkeypatch.setattr(
        process, "_CODE", CHILD.format(at=at, fault=fault, opened=OPENED, timed=TIMED)
    )


@pytest.mark.parametrize("at", [0, 1, 2], ids=["opening", "first run", "later run"])
@pytest.mark.parametrize("name", FAULTS)
def test_a_process_that_ends_says_how(monkeypatch, tmp_path, name, at):
    fault, words = FAULTS[name]
    child(monkeypatch, at, fault)
    if name == "silence":
        monkeypatch.setattr(process, "_LONGEST", 1)
    with pytest.raises(Died) as found:
        opened = process.Worker(JOB, tmp_path / "log")
        for _ in range(at):
            assert opened.run(Timed(tokens=4)) == (0.5, 0.9)
    assert words in str(found.value)


def test_an_error_in_a_process_is_no_death(monkeypatch, tmp_path):
    child(monkeypatch, 0, "print(json.dumps({'error': 'no model'}), flush=True); continue")
    with pytest.raises(EdgeQATError, match=r"^no model$") as found:
        process.Worker(JOB, tmp_path / "log", spare=JOB)
    assert not isinstance(found.value, Died)


BOLD = """
if not number:
            bold = not json.loads(line)["job"]["cautious"]
        if bold and number == {at}:
            os.kill(os.getpid(), signal.SIGSEGV)
"""


@pytest.mark.parametrize("at", [0, 1], ids=["opening", "first run"])
def test_a_process_that_dies_is_opened_once_more(monkeypatch, tmp_path, at):
    child(monkeypatch, "number", BOLD.strip().format(at=at))
    opened = process.Worker(JOB, tmp_path / "log", replace(JOB, cautious=True))
    if at:
        with pytest.raises(Died):
            opened.run(Timed(tokens=4))
        assert opened.reopen()
    assert opened.run(Timed(tokens=4)) == (0.5, 0.9)
    assert not opened.reopen()
    opened.close()
