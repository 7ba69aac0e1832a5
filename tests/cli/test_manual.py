"""docs/ against the code: pages of verbs, quoted errors."""

from __future__ import annotations

import re
from pathlib import Path

import typer

from edgeqat.cli import app, manual, run

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PROGRAM = typer.main.get_command(app)


def test_pages_of_verbs_are_current():
    written = {path.stem: path.read_text(encoding="utf-8") for path in DOCS.glob("cli/*.md")}
    assert written == manual.pages(PROGRAM), "run `edgeqat manual docs/cli`"


def test_a_page_names_arguments_options_and_defaults():
    page = manual.pages(PROGRAM)["export"]
    assert "edgeqat export TARGET FOLDER [OPTIONS]" in page
    assert "| `--output` | File (gguf, onnx) or folder to write. Required. |" in page
    assert "| `--repeat` | Repetitions after the warm-up. [5] |" in manual.pages(PROGRAM)["bench"]


def test_the_verb_writes_the_pages(tmp_path, capsys):
    assert run(["manual", str(tmp_path / "cli")]) == 0
    names = sorted(path.stem for path in (tmp_path / "cli").iterdir())
    assert names == sorted(manual.pages(PROGRAM))
    assert "manual" not in names


def test_troubleshooting_quotes_real_errors():
    sources = [*ROOT.glob("edgeqat/**/*.py"), *ROOT.glob("kernels/src/*.cc")]
    whole = "".join(path.read_text(encoding="utf-8") for path in sources)
    whole = re.sub(r"[\"']\s*\n\s*f?[\"']", "", whole)  # a message over several lines
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)
    assert len(quoted) > 10
    assert [words for words in quoted if words not in whole] == []
