"""The progress of training on a terminal and in a pipe."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from edgeqat import log
from edgeqat.cli.progress import training_progress

POSITION = {"stage": "qat", "steps": 4, "seconds": 0.0, "tokens_per_second": 0.0, "terms": {}}
RECORD = {"seconds": 2.0, "tokens_per_second": 100.0, "terms": {"loss": 0.5, "kl": 0.25}}


@pytest.fixture(params=[True, False], ids=["terminal", "pipe"])
def written(request, monkeypatch):
    """What was written to a console, and whether it is a terminal."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=request.param, width=120)
    monkeypatch.setattr(log, "console", lambda: console)
    return file, request.param


def test_a_run_is_seen_before_its_first_record(written):
    file, is_terminal = written
    with training_progress() as listener:
        assert hasattr(listener, "moved") == is_terminal
        if is_terminal:
            listener.moved({**POSITION, "step": 0})
    assert ("0/4" in file.getvalue()) == is_terminal


def test_terms_stay_until_the_next_record(written):
    file, is_terminal = written
    with training_progress() as listener:
        listener({**POSITION, **RECORD, "step": 2})
        if is_terminal:
            listener.moved({**POSITION, "tokens_per_second": 100.0, "step": 3})
    text = file.getvalue()
    assert "loss 0.5000  kl 0.2500" in text and "100 tokens/s" in text
    if is_terminal:
        assert "3/4" in text.rpartition("loss 0.5000")[0].rpartition("qat")[2]
    else:
        assert text == "  qat     2/4  loss 0.5000  kl 0.2500  100 tokens/s  2 s left\n"
