"""How many branches of the engine's loader mutated folders reach: builds edgeqat-fuzz with counts
for gcov, runs it and prints lines and branches per file.

    python eval/loader_coverage.py PACKED [--rounds 10000] [--least 0]
"""

from __future__ import annotations

import argparse
import gzip
import json
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[1]
LOADER = ("json", "json_reader", "tensors", "config", "model")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("packed", type=Path, help="packed folder to mutate")
    parser.add_argument("--rounds", type=int, default=10000)
    parser.add_argument("--least", type=float, default=0, help="percent of branches to demand")
    options = parser.parse_args()
    with TemporaryDirectory(prefix="edgeqat-coverage-") as folder:
        build = Path(folder)
        settings = ["-DEDGEQAT_TESTS=ON", "-DEDGEQAT_COVERAGE=ON", "-DCMAKE_BUILD_TYPE=None"]
        run("cmake", "-S", ROOT / "kernels", "-B", build, *settings)
        run("cmake", "--build", build, "--parallel", "2", "--target", "edgeqat-fuzz")
        print(run(build / "edgeqat-fuzz", options.packed.resolve(), options.rounds).strip())
        found = {name: counts(build, name) for name in LOADER}
    lines, branches = [0, 0], [0, 0]
    for name, (line, branch) in found.items():
        print(f"{name + '.cc':12} lines {share(line)}  branches {share(branch)}")
        lines = [a + b for a, b in zip(lines, line, strict=True)]
        branches = [a + b for a, b in zip(branches, branch, strict=True)]
    print(f"{'together':12} lines {share(lines)}  branches {share(branches)}")
    if 100 * branches[0] < options.least * branches[1]:
        raise SystemExit(f"error: branches: fewer than {options.least:g}% were taken")


def run(*command: object) -> str:
    """Stdout of a command that must succeed."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"error: {' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


def counts(build: Path, name: str) -> tuple[list[int], list[int]]:
    """Executed and all lines, taken and all branches of one source, without the compiler's own
    branches for exceptions.
    """
    place = build / "CMakeFiles" / "edgeqat_objects.dir" / "src"
    command = ["gcov", "--json-format", "--branch-probabilities", f"{name}.cc.gcda"]
    subprocess.run(command, cwd=place, capture_output=True, check=True)
    (report,) = place.glob(f"{name}*.gcov.json.gz")
    files = json.loads(gzip.decompress(report.read_bytes()))["files"]
    (source,) = (file for file in files if file["file"].endswith(f"/src/{name}.cc"))
    lines: dict[int, bool] = {}
    branches: dict[tuple[int, int], bool] = {}
    for line in source["lines"]:  # a line of a template comes once per instance
        number = line["line_number"]
        lines[number] = lines.get(number, False) or line["count"] > 0
        for index, branch in enumerate(b for b in line["branches"] if not b["throw"]):
            key = number, index
            branches[key] = branches.get(key, False) or branch["count"] > 0
    return [sum(lines.values()), len(lines)], [sum(branches.values()), len(branches)]


def share(pair: list[int]) -> str:
    """Count of all, and in percent."""
    return f"{pair[0]:4}/{pair[1]:4} {100 * pair[0] / pair[1]:5.1f}%"


if __name__ == "__main__":
    main()
