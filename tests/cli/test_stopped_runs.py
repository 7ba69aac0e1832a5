"""Runs that stop on the way: exit code, one line that says how to go on, nothing half-written."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edgeqat.cli import run


@pytest.fixture
def arguments(model_folder, text_file, tmp_path):
    small = ["data.context=32", "data.valid_blocks=4", "train.batch_size=2", "train.log_steps=1"]
    small += ["train.compare_float=false", "train.save_steps=2", "train.learning_rate=1e-3"]
    settings = [word for setting in small for word in ("--set", setting)]
    text = ["--data", str(text_file), "--output", str(tmp_path / "out")]
    return ["quantize", "--model", str(model_folder), "--w4a8kv4", *text, *settings]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "moment", "said"),
    [
        (signal.SIGINT, "qat 3/400", "interrupted after step"),
        (signal.SIGTERM, "PTQ at", "interrupted; the same command continues with what is computed"),
    ],
)
def test_a_signal_leaves_a_state_that_continues(arguments, tmp_path, number, moment, said):
    command = [sys.executable, "-m", "edgeqat.cli", *arguments, "--steps", "400"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "400"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        for line in process.stderr:
            if moment in " ".join(line.split()):
                process.send_signal(number)
                break
        last = process.stderr.read().splitlines()[-1]
    assert process.returncode == 130
    assert last.startswith(f"error: {said}"), last
    assert "the same command continues" in last
    assert str(tmp_path / "out.run") in last
    assert names(tmp_path) == ["out.run"]
    assert [p for p in tmp_path.rglob(".*") if p.is_dir()] == []


def test_a_full_disk_is_one_line_and_the_run_goes_on_later(arguments, tmp_path, capsys):
    """The limit on file sizes lets weights through and cuts the optimizer's state."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, hard))
        assert run([*arguments, "--steps", "4"]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    for word in ("checkpoint: writing", "step-2", "free some space", "same command"):
        assert word in lines[0]
    assert names(tmp_path) == ["out.run"]
    assert not list((tmp_path / "out.run").rglob("*step-*"))
    assert run([*arguments, "--steps", "4"]) == 0
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("raw", [b"", b"the old river", b"caf\xe9 " * 100])
def test_a_stream_without_text_leaves_nothing(arguments, tmp_path, text_file, capsys, raw):
    place = tmp_path / "in"
    place.mkdir()
    (place / "text.txt").write_bytes(raw)
    data = {"root": "null", "train": place / "text.txt", "valid": text_file, "streaming": "true"}
    settings = [word for key in data for word in ("--set", f"data.{key}={data[key]}")]
    chosen = [word for word in arguments if word not in ("--data", str(text_file))]
    assert run([*chosen, *settings]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: data: ")
    assert names(tmp_path) == ["in"]


@pytest.mark.slow
def test_killed_runs_end_like_undisturbed_ones(arguments):
    """One of what eval/kill_runs.py does twenty times: anywhere, in a save, while packing."""
    script = Path(__file__).parents[2] / "eval" / "kill_runs.py"
    done = subprocess.run(
        [sys.executable, str(script), "--runs", "1", "--seed", "6", *arguments[1:], "--steps", "8"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 of 1 runs equal the undisturbed one" in done.stdout
