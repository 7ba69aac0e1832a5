"""BLiMP (1912.00582) of a float model and of packed folders, through every backend.

usage: python eval/blimp_table.py FOLDER:BACKEND[,BACKEND...] ... --data-root DATA --out FOLDER
for example  ../models/llama-8m-novels:float runs/w4a8kv4-s0:native,packed,fake-quant

Each row is one `edgeqat eval FOLDER --tasks blimp --backend BACKEND`, all 67 paradigms; a finished
one is not run again (remove its file after quantizing anew). Prints the table and writes it to
FOLDER/blimp.json: the average of the paradigms in percent, its standard error, pairs, seconds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

TASK = "blimp"
HEAD = "| model | backend | BLiMP | pairs | took |\n|---|---|---|---|---|"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("models", nargs="+", metavar="FOLDER:BACKEND[,BACKEND...]")
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=int, help="pairs of each paradigm, for a quick look")
    options = parser.parse_args()
    if any(":" not in model for model in options.models):
        parser.error("models: name the backends too, FOLDER:native,packed,fake-quant or :float")
    names = [Path(model.rsplit(":", 1)[0]).name for model in options.models]
    if len(set(names)) < len(names):
        parser.error("models: results are named by the last part of a folder; give it only once")
    part = "" if options.limit is None else f"-first{options.limit}"
    options.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for model in options.models:
        folder, backends = model.rsplit(":", 1)
        for backend in backends.split(","):
            result = options.out / f"{Path(folder).name}-{backend}{part}.json"
            if not result.is_file():
                evaluate(folder, backend, result, options)
            rows.append(row(folder, backend, json.loads(result.read_text(encoding="utf-8"))))
    table = json.dumps(rows, indent=2) + "\n"
    (options.out / f"blimp{part}.json").write_text(table, encoding="utf-8")
    print(HEAD, *map(told, rows), sep="\n")


def evaluate(folder: str, backend: str, result: Path, options: argparse.Namespace) -> None:
    """One `edgeqat eval` into a result file; ends the program where it fails."""
    command = [
        sys.executable, "-m", "edgeqat.cli", "eval", folder, "--tasks", TASK,
        "--backend", backend, "--data-root", options.data_root,
        "--threads", str(options.threads), "--output", str(result),
    ]  # fmt: skip
    if options.limit is not None:
        command += ["--limit", str(options.limit)]
    done = subprocess.run(command, check=False)
    if done.returncode:
        sys.exit(done.returncode)


def row(folder: str, backend: str, found: dict[str, Any]) -> dict[str, Any]:
    """What the table keeps of lm-eval's result."""
    average, about = found["groups"][TASK], found["edgeqat"]
    return {
        "model": Path(folder).name,
        "scheme": about["scheme"],
        "backend": backend,
        "percent": round(100 * average["acc,none"], 2),
        "standard_error": round(100 * average["acc_stderr,none"], 2),
        "pairs": average["sample_len"],
        "seconds": round(about["seconds"]),
    }


def told(row: dict[str, Any]) -> str:
    """A row of the table in Markdown."""
    score = f"{row['percent']:.2f} (± {row['standard_error']:.2f})"
    return (
        f"| {row['model']} | {row['backend']} | {score} | {row['pairs']:,} | {row['seconds']} s |"
    )


if __name__ == "__main__":
    main()
