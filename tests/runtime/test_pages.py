"""EDGEQAT_PAGES: weights from a copy in huge pages give the same logits as from the mapped file."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
from marks import needs_kernels
from test_engine import pack

from edgeqat.errors import EdgeQATError
from edgeqat.runtime.engine import Engine

pytestmark = needs_kernels


def test_a_copy_gives_the_same_logits(tmp_path, monkeypatch):
    pack(tmp_path, tiny.llama(), "w4a8kv4")
    ids, logits = tiny.ids(1, 24)[0].tolist(), []
    for pages in ("file", "huge", ""):
        monkeypatch.setenv("EDGEQAT_PAGES", pages)
        with Engine(tmp_path, threads=1) as engine:
            logits.append(engine.prefill(ids, every=True))
    assert np.array_equal(logits[0], logits[1]) and np.array_equal(logits[0], logits[2])


def test_an_unknown_kind_is_one_line(tmp_path, monkeypatch):
    pack(tmp_path, tiny.llama(), "w4a8kv4")
    monkeypatch.setenv("EDGEQAT_PAGES", "large")
    with pytest.raises(EdgeQATError, match=r"EDGEQAT_PAGES: 'large' is unknown; known: huge, file"):
        Engine(tmp_path)
