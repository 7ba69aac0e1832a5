"""`edgeqat bench` on a tiny packed folder, and what it refuses."""

from __future__ import annotations

import csv
import json
import os
import shutil

import pytest
from marks import needs_kernels

from edgeqat import native
from edgeqat.bench import latency
from edgeqat.cli import run


@pytest.fixture
def short(monkeypatch):
    """Tests that fit a model of 128 positions."""
    monkeypatch.setattr(latency, "PROMPTS", (16,))
    monkeypatch.setattr(latency, "NEW_TOKENS", 4)


@needs_kernels
def test_a_folder_is_measured_on_two_engines(short, packed_folder, tmp_path, capsys):
    names = ["json", "csv", "png"]
    files = [part for name in names for part in (f"--{name}", str(tmp_path / f"rows.{name}"))]
    engines = ["--engine", "native", "--engine", "native-fp16", "--repeat", "2", "--threads", "1"]
    assert (
        run(["bench", str(packed_folder), *engines, "--depth", "0", "--depth", "20", *files]) == 0
    )
    table = capsys.readouterr().out
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [(row["test"], row["engine"]) for row in rows] == [
        (test, engine)
        for test in ("pp16", "tg4", "tg4@d20")
        for engine in ("native", "native-fp16")
    ]
    weights = (packed_folder / "model.safetensors").stat().st_size
    for row in rows:
        assert row["tokens_per_second"]["mean"] > 0
        assert 1e6 < row["peak_rss_bytes"] < 150e6  # its own process, without torch
        assert (row["threads"], row["model"]) == (1, packed_folder.name)
        assert row["isa"] == native.active_isa()
        assert row["file_bytes"] == weights
        assert row["cpu"]
        assert (row["read_share"] is None) == row["test"].startswith("pp")
        assert f"{row['tokens_per_second']['mean']:.1f}" in table
    assert {row["scheme"] for row in rows} == {"w4a8kv4", "w16a16kv16"}
    turn = 4 * 64 * 64  # the matrix before a tied head, float32 in both
    assert rows[1]["weight_bytes"] - turn > 3 * (rows[0]["weight_bytes"] - turn)
    with open(tmp_path / "rows.csv", newline="") as file:
        flat = list(csv.DictReader(file))
    means = [row["tokens_per_second"]["mean"] for row in rows]
    assert [float(row["tokens_per_second"]) for row in flat] == means
    assert (tmp_path / "rows.png").read_bytes().startswith(b"\x89PNG")


@needs_kernels
def test_tests_that_do_not_fit_the_model_are_left_out(packed_folder, tmp_path):
    file = tmp_path / "rows.json"
    arguments = ["--engine", "native", "--repeat", "1", "--threads", "1", "--json", str(file)]
    assert run(["bench", str(packed_folder), *arguments]) == 0  # 128 positions
    found = [row["test"] for row in json.loads(file.read_text())]
    assert found == ["pp128", "tg64", "tg64x4"]


@needs_kernels
def test_a_shape_at_another_scheme_is_measured(short, tmp_path):
    file = tmp_path / "rows.json"
    arguments = ["--engine", "native", "--repeat", "1", "--depth", "0", "--json", str(file)]
    assert run(["bench", "--shape", "llama-58m", "--w2a8kv2", *arguments]) == 0
    rows = json.loads(file.read_text())
    assert {(row["model"], row["scheme"]) for row in rows} == {("llama-58m", "w2a8kv2")}
    # a quarter of a byte a weight, a byte in the head; the embedding is another matrix
    assert rows[0]["weight_bytes"] < 20e6
    assert rows[0]["file_bytes"] == rows[0]["weight_bytes"] + 16000 * (512 + 2)


@needs_kernels
def test_the_list_names_the_active_instruction_set(capsys, choose_isa):
    choose_isa("scalar")
    assert run(["bench", "--list"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["isa", "scalar", "active"] in lines
    assert ["engine", "native", "available"] in lines


WRONG = {
    "nothing to measure": ([], ["folder", "--shape"]),
    "both": (["{packed}", "--shape", "llama-58m"], ["folder", "--shape"]),
    "no packed folder": (["nothing"], ["nothing"]),
    "a shape": (["--shape", "lama-58m"], ["shape", "lama-58m", "'llama-58m'"]),
    "a scheme": (["--shape", "llama-58m", "--w9a8"], ["scheme", "w9a8"]),
    "a scheme of a folder": (["{packed}", "--w4a8kv4"], ["scheme", "w4a8kv4", "--shape"]),
    "an engine": (["{packed}", "--engine", "natve"], ["engine", "natve", "'native'"]),
    "no threads": (["{packed}", "--threads", "0"], ["--threads", "0"]),
    "no repetition": (["{packed}", "--repeat", "0"], ["--repeat", "0"]),
    "a depth": (["{packed}", "--depth", "-1"], ["--depth", "-1"]),
    "too deep": (["{packed}", "--depth", "100"], ["depth", "100", "128"]),
    "a place": (["{packed}", "--json", "no/rows.json"], ["output", "no/rows.json"]),
    "a folder as a file": (["{packed}", "--csv", "."], ["output", "'.'"]),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_use_is_one_line(name, packed_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments, words = WRONG[name]
    given = [argument.format(packed=packed_folder) for argument in arguments]
    assert run(["bench", *given]) in (1, 2)
    output, error = capsys.readouterr()
    assert output == ""
    (line,) = error.splitlines()
    assert [word for word in words if word not in line] == [], line
    assert list(tmp_path.iterdir()) == []


@needs_kernels
def test_a_damaged_folder_is_one_line_from_its_process(packed_folder, tmp_path, capsys):
    broken = shutil.copytree(packed_folder, tmp_path / "broken")
    os.truncate(broken / "model.safetensors", 4096)
    assert run(["bench", str(broken), "--engine", "native"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "native" in line
