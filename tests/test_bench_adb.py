"""kernels/scripts/bench_adb.sh with an adb that plays the device in a folder."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "kernels/scripts/bench_adb.sh"
DEVICE = "/data/local/tmp/edgeqat"
ADB = """\
#!/bin/sh
echo "$*" >> {place}/calls
there() {{ echo "$1" | sed "s#{device}#{place}/device#g"; }}
case $1 in
  get-state) echo ${{STATE:-device}} ;;
  shell) sh -c "$(there "$2")" ;;
  push) cp "$2" "$(there "$3")" ;;
  pull) cp "$(there "$2")" "$3" ;;
esac
"""
RUN = """\
#!/bin/sh
[ -f model/config.json ] && [ -f model/model.safetensors ] || exit 1
[ "${{*#*--depth 9999}}" = "$*" ] || {{ echo "error: --depth: too many" >&2; exit 2; }}
echo '[{{"test": "tg64", "arguments": "'"$*"'"}}]'
"""


@pytest.fixture
def device(tmp_path, monkeypatch):
    """A folder with adb in PATH, a packed folder and a program for the device."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "adb").write_text(ADB.format(place=tmp_path, device=DEVICE))
    (tmp_path / "edgeqat-run").write_text(RUN.format())
    for file in (tools / "adb", tmp_path / "edgeqat-run"):
        file.chmod(0o755)
    packed = tmp_path / "packed"
    packed.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "README.md"):
        (packed / name).write_text("{}")
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    return tmp_path


def script(place, *arguments):
    names = {"RUN": place / "edgeqat-run", "PACKED": place / "packed", "JSON": place / "rows.json"}
    words = [str(names.get(word, word)) for word in arguments]
    return subprocess.run(["sh", str(SCRIPT), *words], capture_output=True, text=True)


def calls(place):
    file = place / "calls"
    return file.read_text().splitlines() if file.exists() else []


def test_rows_come_back_from_the_device(device):
    told = script(device, "RUN", "PACKED", "JSON", "--threads", "4", "--depth", "128")
    assert told.returncode == 0, told.stderr
    (row,) = json.loads((device / "rows.json").read_text())
    assert row["arguments"] == "model --bench --json --threads 4 --depth 128"
    pushed = [call.split("/")[-1] for call in calls(device) if call.startswith("push")]
    assert pushed == ["edgeqat-run", "config.json", "model.safetensors", "tokenizer.json"]
    assert not (device / "device").exists() and not (device / "rows.json.part").exists()


def test_a_dry_run_shows_the_commands_alone(device):
    told = script(device, "--dry-run", "RUN", "PACKED", "JSON", "--threads", "4")
    assert told.returncode == 0 and calls(device) == []
    assert not (device / "rows.json").exists()
    lines = told.stdout.splitlines()
    assert all(line.startswith("adb ") for line in lines)
    assert any(line.startswith(f"adb push {device}/packed/model.safetensors") for line in lines)
    assert any("--bench --json --threads 4" in line for line in lines)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["RUN", "PACKED"], "usage:"),
        (["missing", "PACKED", "JSON"], "'missing': there is no such file"),
        (["RUN", "/", "JSON"], "folder: '/' holds no model.safetensors"),
        (["RUN", "PACKED", "JSON", "--threads", "4; reboot"], "'4; reboot': letters, digits"),
        (["RUN", "PACKED", "JSON", "--depth", "9999"], "error: edgeqat-run failed on the device"),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments, words, device):
    told = script(device, *arguments)
    assert told.returncode != 0 and words in told.stderr
    assert not (device / "rows.json").exists()


def test_without_a_device_nothing_is_pushed(device, monkeypatch):
    monkeypatch.setenv("STATE", "offline")
    told = script(device, "RUN", "PACKED", "JSON")
    assert told.returncode == 1 and "no device answers (offline)" in told.stderr
    assert calls(device) == ["get-state"]
