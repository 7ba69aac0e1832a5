"""eval/blimp_table.py: rows from finished results, evaluation of what is missing."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from scripts import loaded, needs_scripts

pytestmark = needs_scripts


def result(percent, scheme):
    average = {"acc,none": percent / 100, "acc_stderr,none": 0.0016, "sample_len": 67000}
    return {"groups": {"blimp": average}, "edgeqat": {"scheme": scheme, "seconds": 374.4}}


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["blimp_table.py", *map(str, arguments)])
    with loaded("blimp_table") as script:
        asked = []

        def evaluate(folder, backend, place, options):
            asked.append((folder, backend, options.limit))
            place.write_text(json.dumps(result(59.5, "w4a8kv4")))

        monkeypatch.setattr(script, "evaluate", evaluate)
        script.main()
    return asked


def test_finished_rows_are_kept_and_missing_ones_evaluated(tmp_path, monkeypatch, capsys):
    finished = tmp_path / "model-float.json"
    finished.write_text(json.dumps(result(59.543, "w16a16kv16")))
    asked = run(
        monkeypatch, "a/model:float", "runs/q:native,packed", "--data-root", "d", "--out", tmp_path
    )
    assert asked == [("runs/q", "native", None), ("runs/q", "packed", None)]
    told = capsys.readouterr().out.splitlines()
    assert told[2] == "| model | float | 59.54 (± 0.16) | 67,000 | 374 s |"
    assert told[4] == "| q | packed | 59.50 (± 0.16) | 67,000 | 374 s |"
    rows = json.loads((tmp_path / "blimp.json").read_text())
    assert [row["backend"] for row in rows] == ["float", "native", "packed"]
    assert rows[0]["pairs"] == 67000


def test_a_model_without_backends_is_refused(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, "runs/q", "--data-root", "d", "--out", tmp_path)
    assert stopped.value.code == 2
    assert "name the backends" in capsys.readouterr().err


def test_a_quick_look_is_not_taken_for_the_whole(tmp_path, monkeypatch):
    run(monkeypatch, "runs/q:native", "--data-root", "d", "--out", tmp_path, "--limit", "5")
    assert run(monkeypatch, "runs/q:native", "--data-root", "d", "--out", tmp_path)
    assert not run(monkeypatch, "runs/q:native", "--data-root", "d", "--out", tmp_path)


def test_two_folders_of_one_name_are_refused(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, "a/q:native", "b/q:native", "--data-root", "d", "--out", tmp_path)
    assert "only once" in capsys.readouterr().err


def test_a_failed_evaluation_ends_the_table(tmp_path, monkeypatch):
    arguments = ["runs/missing:native", "--data-root", "d", "--out", tmp_path]
    monkeypatch.setattr(sys, "argv", ["blimp_table.py", *map(str, arguments)])
    failed = subprocess.CompletedProcess([], 3)
    with loaded("blimp_table") as script, pytest.raises(SystemExit) as stopped:
        monkeypatch.setattr(script.subprocess, "run", lambda *a, **b: failed)
        script.main()
    assert stopped.value.code
    assert not (tmp_path / "blimp.json").exists()
