"""README and docs as a stranger meets them: commands parse, the quick ones run, links and pictures
exist, README is a first screen.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from command_lines import arguments, parse

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("recipes/*.md")],
)
SCREENS = [path for path in PAGES if path == README or path.is_relative_to(ROOT / "docs")]
OTHERS = [path for path in PAGES if path not in SCREENS]
QUICK = ["edgeqat --help", "edgeqat recipes", "edgeqat bench --list"]
LONGEST, MOST_LINES = 160, 75
_FENCE = re.compile(r"^ *```\w*\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)|\bsrc=\"([^\"]+)\"")


def page(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def commands(text: str) -> list[str]:
    """The `edgeqat ...` command lines in the fenced blocks of a page, without their comments."""
    joined = "\n".join(_FENCE.findall(text)).replace("\\\n", " ")
    lines = (line.partition(" #")[0].strip() for line in joined.splitlines())
    return [line for line in lines if re.match(r"(\S+=\S* )*(\.venv/bin/)?edgeqat ", line)]


@pytest.mark.parametrize("path", PAGES, ids=page)
def test_commands_parse(path):
    wrong = []
    for line in commands(path.read_text(encoding="utf-8")):
        try:
            parse(arguments(line))
        except Exception as error:
            wrong.append(f"{line}: {error}")
    assert wrong == []


@pytest.mark.parametrize(
    "line",
    [
        "edgeqat quantise --model FOLDER",
        "edgeqat quantize --models FOLDER",
        "edgeqat inspect",
        "edgeqat inspect A B",
        "edgeqat bench --threads two",
    ],
)
def test_a_wrong_command_does_not_parse(line):
    with pytest.raises(Exception, match=r"No such|Missing|unexpected|valid integer"):
        parse(arguments(line))


def test_readme_shows_the_main_job():
    shown = commands(README.read_text(encoding="utf-8"))
    verbs = {arguments(line)[0] for line in shown}
    assert {"quantize", "inspect", "eval", "generate"} <= verbs
    assert set(QUICK) <= set(shown)


@pytest.mark.parametrize("line", QUICK)
def test_the_quick_commands_run(line):
    call = [sys.executable, "-m", "edgeqat.cli", *arguments(line)]
    done = subprocess.run(call, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize("path", PAGES, ids=page)
def test_links_and_pictures_exist(path):
    found = [link or picture for link, picture in _LINK.findall(path.read_text(encoding="utf-8"))]
    local = [one for one in found if not one.startswith("http")]
    assert [one for one in local if not (path.parent / one).exists()] == []


def test_readme_is_a_first_screen():
    lines = README.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= MOST_LINES


@pytest.mark.parametrize("path", [*SCREENS, *OTHERS], ids=page)
def test_lines_fit_a_screen(path):
    """Every line of README.md and docs/, tables too; of other pages those outside tables."""
    lines = path.read_text(encoding="utf-8").splitlines()
    long = [n for n, own in enumerate(lines, 1) if len(own) > LONGEST]
    assert [n for n in long if path in SCREENS or lines[n - 1][0] != "|"] == []
