"""eval/compare_terms.py: means of a term over the steps that all runs have."""

from __future__ import annotations

import json
import sys

import pytest
from scripts import loaded, needs_scripts

pytestmark = needs_scripts


def run(folder, values, steps=40):
    folder.mkdir()
    kl = {"steps": steps, "stage": "qat"}
    lines = [
        {"stage": "float", "step": 10, "steps": 9, "terms": {"kl": 9.0}},
        *({**kl, "step": step, "terms": {"kl": value}} for step, value in values.items()),
    ]
    unfinished = '{"stage": "qat", "st'
    text = "".join(json.dumps(line) + "\n" for line in lines) + unfinished
    (folder / "metrics.jsonl").write_text(text)
    return str(folder)


def told(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["compare_terms.py", *arguments])
    with loaded("compare_terms") as script:
        script.main()
    return capsys.readouterr().out.splitlines()


def test_means_are_of_the_steps_that_all_runs_have(tmp_path, monkeypatch, capsys):
    one = run(tmp_path / "one", {10: 0.4, 20: 0.2, 30: 0.1, 40: 0.05})
    other = run(tmp_path / "other", {10: 0.2, 20: 0.3, 30: 0.5})
    assert told(monkeypatch, capsys, one, other, "--every", "20") == [
        "| steps | one | other |",
        "|---|---|---|",
        "| 10 | 0.40000 | 0.20000 |",  # the last row is whole
        "| 30 | 0.15000 | 0.40000 |",
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["missing"], "holds no metrics.jsonl"),
        (["one", "--term", "entropy"], "was recorded at no"),
        (["one", "--every", "0"], "--every: 0"),
        (["one", "longer"], "[40, 50]"),
    ],
)
def test_what_cannot_be_compared_is_told(tmp_path, monkeypatch, capsys, arguments, said):
    run(tmp_path / "one", {10: 0.4})
    run(tmp_path / "longer", {10: 0.4}, steps=50)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        told(monkeypatch, capsys, *arguments)
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err
