"""Terminals of other encodings, and readers that go away: a line or nothing, never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from marks import needs_kernels

from edgeqat.cli import run

EDGEQAT = [sys.executable, "-m", "edgeqat.cli"]
ENCODINGS = {
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}


def environment(**changes):
    ours = ("PYTHONIOENCODING", "PYTHONUNBUFFERED", "LC_ALL", "PYTHONUTF8", "PYTHONCOERCECLOCALE")
    return {name: value for name, value in os.environ.items() if name not in ours} | changes


@needs_kernels
@pytest.mark.parametrize("name", ENCODINGS)
def test_characters_that_a_terminal_lacks_become_question_marks(packed_folder, name, tmp_path):
    sampled = ["--temperature", "3", "--max-tokens", "90"]  # bytes of no character among them
    arguments = ["generate", str(packed_folder), "--prompt", "the old river", *sampled]
    done = subprocess.run(
        [*EDGEQAT, *arguments], capture_output=True, env=environment(**ENCODINGS[name])
    )
    assert done.returncode == 0, done.stderr
    assert b"?" in done.stdout and done.stderr == b""


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (["generate", "{packed}", "--prompt", b"caf\xe9"], "prompt: 'caf\\udce9'"),
        (["generate", "{packed}", b"--prompt=caf\xe9"], "prompt: '--prompt=caf\\udce9'"),
        (["generate", b"caf\xe9", "--prompt", "x"], "argument: 'caf\\udce9'"),
        (["quantize", "--recipe", b"caf\xe9.yaml"], "recipe: 'caf\\udce9.yaml'"),
        (["quantize", "--output", b"caf\xe9"], "output: 'caf\\udce9'"),
        (["eval", "{packed}", "--data", b"caf\xe9.txt"], "data: 'caf\\udce9.txt'"),
    ],
)
def test_arguments_that_are_no_text_are_refused(arguments, field, packed_folder, capsys):
    given = [own.format(packed=packed_folder) if isinstance(own, str) else own for own in arguments]
    assert run([os.fsdecode(own) for own in given]) == 2
    output, error = capsys.readouterr()
    (line,) = error.splitlines()
    assert line == (
        f"error: {field} has bytes that are not text in the terminal's encoding; set the "
        "terminal to UTF-8, or give other text or another name"
    )
    assert output == ""


def test_a_data_folder_that_is_no_text_is_refused(monkeypatch, capsys):
    monkeypatch.setenv("EDGEQAT_DATA", os.fsdecode(b"d\xe9r"))
    assert run(["recipes"]) == 2
    assert capsys.readouterr().err.startswith(
        "error: EDGEQAT_DATA: 'd\\udce9r' has bytes that are not text"
    )


def test_a_folder_of_another_encoding_above_is_one_line(model_folder, tmp_path):
    place = os.path.join(os.fsencode(tmp_path), b"m\xe9d")
    os.symlink(model_folder, place)
    done = subprocess.run(
        [
            *EDGEQAT,
            "quantize",
            "--model",
            ".",
            "--data",
            "demo",
            "--steps",
            "0",
            "--output",
            "../o",
        ],
        capture_output=True,
        env=environment(),
        cwd=place,
    )
    assert done.returncode in (1, 2)
    assert b"Traceback" not in done.stderr and done.stderr.strip().splitlines()[-1][:6] == b"error:"


@needs_kernels
@pytest.mark.parametrize(
    "arguments",
    [
        ["--version"],
        ["recipes"],
        ["inspect", "{packed}"],
        ["generate", "{packed}", "--prompt", "the old river", "--max-tokens", "90"],
    ],
    ids=lambda given: given[0],
)
def test_a_reader_that_goes_away_ends_it_quietly(arguments, packed_folder):
    command = [*EDGEQAT, *(own.format(packed=packed_folder) for own in arguments)]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, env=environment())
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_a_full_disk_behind_stdout_is_one_line():
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*EDGEQAT, "--version"], stdout=full, stderr=subprocess.PIPE, env=environment()
        )
    assert done.returncode == 1
    assert done.stderr == b"error: stdout: No space left on device; give another place\n"
