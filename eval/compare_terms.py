"""A loss term of runs that saw the same batches, side by side: means over every so many steps.

usage: python eval/compare_terms.py FOLDER FOLDER ... [--term kl] [--every 100]

Two runs with the same seed, data, batch size and number of steps draw the same batches, so that
the difference of their terms is far less noisy than that of their held-out perplexities
(docs/log.md).
FOLDER is what `edgeqat quantize` wrote, or its FOLDER.run while it trains.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

METRICS = "metrics.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--term", default="kl", help="name of a loss term: loss, kl, ce, ...")
    parser.add_argument("--every", type=int, default=100, help="steps of a row")
    options = parser.parse_args()
    for folder in options.folders:
        if not (folder / METRICS).is_file():
            parser.error(f"folders: '{folder}' holds no {METRICS}; name runs of edgeqat quantize")
    found = [terms(folder / METRICS, options.term) for folder in options.folders]
    common = set.intersection(*(set(steps) for steps in found))
    if not common:
        parser.error(f"--term: '{options.term}' was recorded at no step that all runs have")
    print("| steps |", " | ".join(folder.name for folder in options.folders), "|")
    print("|---" * (1 + len(found)) + "|")
    for last in range(options.every, max(common) + options.every, options.every):
        inside = [step for step in common if last - options.every < step <= last]
        if inside:
            means = [sum(steps[step] for step in inside) / len(inside) for steps in found]
            print(f"| {last} |", " | ".join(f"{mean:.5f}" for mean in means), "|")


def terms(path: Path, name: str) -> dict[int, float]:
    """Values of a term by step, of the QAT stage."""
    lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    qat = [line for line in lines if line["stage"] == "qat" and name in line["terms"]]
    return {line["step"]: line["terms"][name] for line in qat}


if __name__ == "__main__":
    main()
