"""Which rows there are, which can be computed, and how they are chosen."""

from __future__ import annotations

import pytest

from edgeqat.compare import rows
from edgeqat.compare.rows import KINDS, TRAINED, Row, listing, missing, select
from edgeqat.errors import UsageError

OURS = ["float", "ours-ptq w4a8kv4", "ours-start w4a8kv4"]


def labels(wanted, schemes=("w4a8kv4",), trained=(), steps=0):
    return [row.label for row in select(wanted, schemes, trained, steps)]


def test_ours_come_at_every_scheme_behind_the_float_model():
    assert labels("ours") == OURS
    assert labels("float") == ["float"]
    both = labels("ours-ptq", ["w4a8kv4", "w8a8kv8"])
    assert both == ["float", "ours-ptq w4a8kv4", "ours-ptq w8a8kv8"]


def test_training_is_a_row_where_it_is_asked_for():
    assert labels("ours", steps=5) == [*OURS, "ours-qat w4a8kv4"]
    found = select("ours-qat", ["w4a8kv4"], [("w3a8kv3", "folder")], 0)
    assert found == [Row("float"), Row(TRAINED, "w3a8kv3", "folder")]
    with pytest.raises(UsageError, match=r"'ours-qat' needs .* --qat FOLDER or --steps N"):
        select("ours-qat", ["w4a8kv4"], [], 0)


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ("our", "rows: 'our' is unknown; did you mean 'ours'?"),
        ("llama.cpp-q4_0-kv8", "did you mean 'llama.cpp-q4_0-kv4'?"),
        (" , ", "rows: none is named"),
    ],
)
def test_unknown_rows_are_refused(monkeypatch, wanted, words):
    with pytest.raises(UsageError, match="rows: ") as caught:
        labels(wanted)
    assert words in str(caught.value)


def test_absent_peers_are_left_out_or_named(monkeypatch):
    monkeypatch.setattr(rows, "find_spec", lambda module: None)
    assert labels(None) == OURS
    assert missing("torchao-int8dq") == "pip install torchao"
    assert ("llama.cpp-q2_k", "pip install 'edgeqat[peers]'") in listing()
    with pytest.raises(UsageError, match="'auto-round-g128' is not installed; pip install auto-"):
        labels("auto-round")


def test_every_row_says_what_it_computes_with():
    assert {name for name, kind in KINDS.items() if not kind.format} == {
        "ours-ptq", "ours-start", "ours-qat",
    }  # fmt: skip
    files = [kind for kind in KINDS.values() if kind.family == "llama.cpp"]
    assert len(files) == 18 == 2 * len([kind for kind in files if kind.cache == "f16"])
